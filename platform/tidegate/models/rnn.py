"""A recurrent network over a series or a text: simple (Elman 1990), GRU (Cho et al. 2014) or LSTM (Hochreiter and
Schmidhuber 1997), in one direction or in both (Schuster and Paliwal 1997)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tidegate.models.initialise import initialise
from tidegate.spec import model as spec
from tidegate.transforms.base import Feature, length_key
from tidegate.transforms.text import PAD

_CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class Rnn(nn.Module):
    """`tokens`, of a text; `cells`, which see no padding; the last state or the mean over the steps; `head`."""

    def __init__(self, options: spec.Rnn, features: Sequence[Feature], outputs: int) -> None:
        super().__init__()
        (self.feature,) = features
        self.pool, self.directions = options.pool, 1 + options.bidirectional
        self.is_text = self.feature.kind == "text"
        size = options.width if self.is_text else self.feature.shape[1]
        if self.is_text:
            self.tokens = nn.Embedding(self.feature.cardinality, size, padding_idx=PAD)
        self.cells = _CELLS[options.cell](
            size,
            options.width,
            options.layers,
            batch_first=True,
            bidirectional=options.bidirectional,
            dropout=options.dropout if options.layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(self.directions * options.width, outputs)
        initialise(self, options.init)
        if self.is_text:
            nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        lengths = inputs[length_key(self.feature.name)].reshape(-1).long()
        packed = pack_padded_sequence(self._steps(inputs), lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, last = self.cells(packed)
        if self.pool == "mean":
            padded, _ = pad_packed_sequence(states, batch_first=True)
            found = padded.sum(dim=1) / lengths.to(padded.device).unsqueeze(1)
        else:
            hidden = last[0] if isinstance(last, tuple) else last
            # Of the last layer: forwards at the end, and backwards at the beginning.
            found = torch.cat(list(hidden[-self.directions :]), dim=1)
        output: Tensor = self.head(self.dropout(found))
        return output

    def _steps(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """`[rows, steps, size]`."""
        values = inputs[self.feature.name]
        if self.is_text:
            embedded: Tensor = self.dropout(self.tokens(values.long()))
            return embedded
        return values.reshape(len(values), *self.feature.shape)
