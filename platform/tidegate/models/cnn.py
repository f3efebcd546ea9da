"""A convolutional network for images: blocks of 3 x 3 convolution, ReLU and max pooling, then two linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from tidegate.models.initialise import initialise
from tidegate.spec import model as spec
from tidegate.transforms.base import Feature

SMALLEST = 2
"""Maps of this size or less are not pooled further."""


class Cnn(nn.Module):
    """`blocks`: Conv2d, ReLU, MaxPool2d (while the map is larger than 2 x 2). `head`: linear layers with dropout."""

    def __init__(self, options: spec.Cnn, features: Sequence[Feature], outputs: int) -> None:
        super().__init__()
        (self.feature,) = features
        channels, height, width = self.feature.shape
        blocks: list[nn.Module] = []
        for wanted in options.channels:
            blocks += [nn.Conv2d(channels, wanted, 3, padding=1), nn.ReLU()]
            channels = wanted
            if min(height, width) > SMALLEST:
                blocks.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(options.dropout),
            nn.Linear(channels * height * width, options.hidden),
            nn.ReLU(),
            nn.Dropout(options.dropout),
            nn.Linear(options.hidden, outputs),
        )
        initialise(self, options.init)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        images = inputs[self.feature.name]
        output: Tensor = self.head(self.blocks(images.reshape(-1, *self.feature.shape)))
        return output
