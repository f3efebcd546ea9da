"""From sound, or any series, to a text in its order: connectionist temporal classification (Graves et al. 2006).

Convolutions make frames fewer, an encoder reads them, and each frame says a token or nothing (the blank). The answer is
the best path (section 3.2 there): the likeliest token of each frame, repetitions and blanks left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tidegate.errors import TrainingError
from tidegate.models.initialise import initialise
from tidegate.models.pre_norm import pre_norm_encoder
from tidegate.spec import model as spec
from tidegate.transforms.base import Feature, length_key
from tidegate.transforms.tokens import END, NEVER_ANSWERED, PAD


class Ctc(nn.Module):
    """`shorter`: convolutions, which halve the number of frames; `encoder`; `head`: the tokens, PAD for the blank."""

    def __init__(self, options: spec.Ctc, features: Sequence[Feature], target: Feature) -> None:
        super().__init__()
        (self.feature,) = features
        self.target, (self.longest,) = target.name, target.shape
        sizes = [self.feature.shape[1], *[options.width] * (options.halvings + 1)]
        self.strides = [1, *[2] * options.halvings]
        self.shorter = nn.ModuleList(
            nn.Conv1d(before, after, 3, stride, padding=1)
            for before, after, stride in zip(sizes[:-1], sizes[1:], self.strides, strict=True)
        )
        self.norm = nn.LayerNorm(options.width)
        self.dropout = nn.Dropout(options.dropout)
        if options.encoder == "transformer":
            self.encoder: nn.Module = AttentionEncoder(options, self.feature.shape[0])
            states = options.width
        else:
            self.encoder, states = RecurrentEncoder(options), 2 * options.width
        self.head = nn.Linear(states, target.cardinality)
        initialise(self, options.init)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Codes int64 `[rows, longest]`; where the target is given too, what `_surprise` has of it."""
        lengths = inputs[length_key(self.feature.name)].reshape(-1).long()
        frames = inputs[self.feature.name].reshape(len(lengths), *self.feature.shape)[:, : int(lengths.max())]
        states, lengths = self._shortened(frames, lengths)
        logits = self.head(self.dropout(self.encoder(states, lengths))).float()
        if self.target in inputs:
            return self._surprise(logits, lengths, inputs[self.target].long())
        return self._answered(logits, lengths)

    def _shortened(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        states = frames.transpose(1, 2)
        for convolution, stride in zip(self.shorter, self.strides, strict=True):
            states = functional.gelu(convolution(states))
            lengths = (lengths + stride - 1) // stride
            # What lies beyond the end must stay zero: the next convolution sees it.
            beyond = torch.arange(states.shape[2], device=states.device) >= lengths.unsqueeze(1)
            states = states.masked_fill(beyond.unsqueeze(1), 0.0)
        return self.dropout(self.norm(states.transpose(1, 2))), lengths

    def _surprise(self, logits: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """float32 `[rows, 2]`: minus the log likelihood, and of how many tokens."""
        tokens = (target != PAD).sum(dim=1)
        chances = logits.log_softmax(dim=2).transpose(0, 1)
        losses = functional.ctc_loss(chances, target, lengths, tokens, blank=PAD, reduction="none")
        if not bool(losses.isfinite().all()) and bool(logits.isfinite().all()):
            row = int((~losses.isfinite()).nonzero()[0])
            raise TrainingError(
                f"a row of {int(lengths[row])} frames is to have {int(tokens[row])} tokens",
                expected="a frame for each token, and one more where a token repeats the one before",
                remedy="lower model.halvings, or leave such rows out",
            )
        return torch.stack([losses, tokens.to(losses.dtype)], dim=1)

    def _answered(self, logits: Tensor, lengths: Tensor) -> Tensor:
        logits[:, :, [*NEVER_ANSWERED, END]] = float("-inf")
        best = logits.argmax(dim=2)
        known = torch.arange(best.shape[1], device=best.device) < lengths.unsqueeze(1)
        new = functional.pad(best[:, 1:] != best[:, :-1], (1, 0), value=True)
        said = known & new & (best != PAD)
        places = said.cumsum(dim=1) - 1
        codes = best.new_full((len(best), self.longest), PAD)
        rows, frames = (said & (places < self.longest)).nonzero(as_tuple=True)
        codes[rows, places[rows, frames]] = best[rows, frames]
        return codes


class RecurrentEncoder(nn.Module):
    """A GRU or an LSTM in both directions: `[rows, frames, width]` -> `[rows, frames, 2 * width]`."""

    def __init__(self, options: spec.Ctc) -> None:
        super().__init__()
        kind = nn.LSTM if options.encoder == "lstm" else nn.GRU
        dropout = options.dropout if options.layers > 1 else 0.0
        width = options.width
        self.cells = kind(width, width, options.layers, batch_first=True, bidirectional=True, dropout=dropout)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(states, lengths.cpu(), batch_first=True, enforce_sorted=False)
        found: Tensor = pad_packed_sequence(self.cells(packed)[0], batch_first=True)[0]
        return found


class AttentionEncoder(nn.Module):
    """A pre-norm transformer encoder with learned positions: `[rows, frames, width]`, and the same shape."""

    def __init__(self, options: spec.Ctc, longest: int) -> None:
        super().__init__()
        width = options.width
        self.positions = nn.Embedding(longest, width)
        self.layers = pre_norm_encoder(width, options.heads, options.layers, options.dropout, nn.LayerNorm(width))
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(states.shape[1], device=states.device)
        found: Tensor = self.layers(
            states + self.positions(places), src_key_padding_mask=places >= lengths.unsqueeze(1)
        )
        return found
