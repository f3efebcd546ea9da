"""Attention over the positions of an image, with queries, keys and values made by convolution.

After the convolutional projections of Wu et al., "CvT: Introducing Convolutions to Vision Transformers" (2021, section
3.2), over a convolutional stem; pre-norm (Xiong et al. 2020). Convolutions know where a position is by its
neighbourhood, so that there are no position embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from tidegate.models.cnn import SMALLEST
from tidegate.models.initialise import initialise
from tidegate.spec import model as spec
from tidegate.transforms.base import Feature


class ConvAttention(nn.Module):
    """`stem`: Conv2d, ReLU, MaxPool2d for each width; `blocks`; `norm`; the mean over the positions; `head`."""

    def __init__(self, options: spec.ConvAttention, features: Sequence[Feature], outputs: int) -> None:
        super().__init__()
        (self.feature,) = features
        channels, height, width = self.feature.shape
        stem: list[nn.Module] = []
        for wanted in (*options.stem, options.width):
            stem += [nn.Conv2d(channels, wanted, 3, padding=1), nn.ReLU()]
            channels = wanted
            if min(height, width) > SMALLEST:
                stem.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.Sequential(*(Block(options) for _ in range(options.layers)))
        self.norm = nn.GroupNorm(1, options.width)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(options.width, outputs)
        initialise(self, options.init)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        images = inputs[self.feature.name].reshape(-1, *self.feature.shape)
        maps = self.norm(self.blocks(self.stem(images)))
        output: Tensor = self.head(self.dropout(maps.mean(dim=(2, 3))))
        return output


class Block(nn.Module):
    """`attention` over all positions, then two convolutions; both added to what came in: `[rows, width, h, w]`."""

    def __init__(self, options: spec.ConvAttention) -> None:
        super().__init__()
        width = options.width
        # One group: the norm of a layer over channels and positions.
        self.before = nn.GroupNorm(1, width)
        self.attention = Attention(width, options.heads)
        self.feed_forward = nn.Sequential(
            nn.GroupNorm(1, width), nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1)
        )
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps + self.dropout(self.attention(self.before(maps)))
        output: Tensor = maps + self.dropout(self.feed_forward(maps))
        return output


class Attention(nn.Module):
    """softmax(QK^T / sqrt(d)) V (Vaswani et al. 2017, equation 1), Q, K and V from 3 x 3 convolutions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        query, key, value = (self._split(project(maps)) for project in (self.query, self.key, self.value))
        found = functional.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.out(found.transpose(2, 3).reshape(maps.shape))
        return output

    def _split(self, maps: Tensor) -> Tensor:
        """`[rows, width, h, w]` -> `[rows, heads, h * w, width / heads]`."""
        rows, width = maps.shape[:2]
        return maps.reshape(rows, self.heads, width // self.heads, -1).transpose(2, 3)
