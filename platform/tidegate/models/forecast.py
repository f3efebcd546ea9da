"""Several steps ahead of a series at once, from the state after its last known step.

Each window is brought to mean 0 and deviation 1 and its forecast back (Kim et al., "Reversible Instance Normalization
for Accurate Time-Series Forecasting against Distribution Shift", 2022, equations 1 to 4), so that a series may drift
away from the values it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from tidegate.models.initialise import initialise
from tidegate.models.pre_norm import pre_norm_encoder
from tidegate.spec import model as spec
from tidegate.transforms.base import Feature, length_key

SMALLEST = 1e-5
"""Added to a window's variance: one that does not change has none."""


class Forecast(nn.Module):
    """`encoder`, then `head`: the target's steps in units of the window; `scale` and `shift` make them the target's."""

    def __init__(self, options: spec.Forecast, features: Sequence[Feature], outputs: int) -> None:
        super().__init__()
        (self.feature,) = features
        kind = Attention if options.encoder == "transformer" else Recurrent
        self.encoder = kind(options, *self.feature.shape)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(options.width, outputs)
        # Series and target are standardised apart, the one over all steps and the other over those it is asked for.
        self.scale, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        initialise(self, options.init)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        lengths = inputs[length_key(self.feature.name)].reshape(-1, 1, 1).long()
        steps = inputs[self.feature.name].reshape(-1, *self.feature.shape)[:, : int(lengths.max())]
        known = torch.arange(steps.shape[1], device=steps.device).reshape(1, -1, 1) < lengths
        mean = (steps * known).sum(dim=1, keepdim=True) / lengths
        variance = ((steps - mean) * known).square().sum(dim=1, keepdim=True) / lengths
        deviation = (variance + SMALLEST).sqrt()
        window = (steps - mean) / deviation * known
        ahead = self.head(self.dropout(self.encoder(window, lengths.reshape(-1))))
        output: Tensor = self.scale * (ahead * deviation[:, 0, :1] + mean[:, 0, :1]) + self.shift
        return output


class Recurrent(nn.Module):
    """The last state of a GRU or an LSTM: `[rows, steps, channels]` -> `[rows, width]`."""

    def __init__(self, options: spec.Forecast, _: int, channels: int) -> None:
        super().__init__()
        kind = nn.LSTM if options.encoder == "lstm" else nn.GRU
        dropout = options.dropout if options.layers > 1 else 0.0
        self.cells = kind(channels, options.width, options.layers, batch_first=True, dropout=dropout)

    def forward(self, window: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(window, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.cells(packed)
        hidden: Tensor = last[0] if isinstance(last, tuple) else last
        return hidden[-1]


class Attention(nn.Module):
    """The state of the last step of a pre-norm transformer encoder: `[rows, steps, channels]` -> `[rows, width]`."""

    def __init__(self, options: spec.Forecast, longest: int, channels: int) -> None:
        super().__init__()
        width = options.width
        self.first = nn.Linear(channels, width)
        # Counted from the end: the last step is the last one in windows of any length.
        self.positions = nn.Embedding(longest, width)
        self.layers = pre_norm_encoder(width, options.heads, options.layers, options.dropout)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, window: Tensor, lengths: Tensor) -> Tensor:
        from_end = lengths.unsqueeze(1) - 1 - torch.arange(window.shape[1], device=window.device)
        states = self.first(window) + self.positions(from_end.clamp(min=0))
        states = self.layers(states, src_key_padding_mask=from_end < 0)
        last: Tensor = states[torch.arange(len(states), device=states.device), lengths - 1]
        normed: Tensor = self.norm(last)
        return normed
