"""A transformer encoder for text (Vaswani et al. 2017; pre-norm, Xiong et al. 2020), with the mean over the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tidegate.models.initialise import initialise
from tidegate.models.pre_norm import pre_norm_encoder
from tidegate.spec import model as spec
from tidegate.transforms.base import Feature, length_key
from tidegate.transforms.text import PAD


class Transformer(nn.Module):
    """Token and position embeddings, `encoder` layers, `norm`, mean over the real tokens, `head`."""

    def __init__(self, options: spec.Transformer, features: Sequence[Feature], outputs: int) -> None:
        super().__init__()
        (self.feature,) = features
        width = options.width
        own = options.embeddings.width if options.embeddings else width
        self.tokens = nn.Embedding(self.feature.cardinality, own, padding_idx=PAD)
        # Embeddings from elsewhere have a width of their own.
        self.narrowed = nn.Linear(own, width, bias=False) if options.embeddings else nn.Identity()
        self.positions = nn.Embedding(self.feature.shape[0], width)
        self.encoder = pre_norm_encoder(width, options.heads, options.layers, options.dropout)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(width, outputs)
        initialise(self, options.init)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        lengths = inputs[length_key(self.feature.name)].reshape(-1, 1)
        longest = int(lengths.max())
        codes = inputs[self.feature.name][:, :longest].long()
        places = torch.arange(longest, device=codes.device)
        padding = places >= lengths
        states = self.dropout(self.narrowed(self.tokens(codes)) + self.positions(places))
        states = self.norm(self.encoder(states, src_key_padding_mask=padding))
        total = states.masked_fill(padding.unsqueeze(-1), 0.0).sum(dim=1)
        output: Tensor = self.head(self.dropout(total / lengths))
        return output
