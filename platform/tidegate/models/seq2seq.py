"""From a text to a sequence of tokens: an encoder, and a decoder that attends to it and writes token after token.

With GRUs: Cho et al. 2014, with the attention of Luong et al. 2015 (section 3.1), scaled and of several heads. With
transformers: Vaswani et al. 2017, pre-norm (Xiong et al. 2020). Trained on the tokens that should have come before
(teacher forcing); answers are written by beam search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tidegate.models.beam_search import State, beam_search
from tidegate.models.cached_attention import CachedAttention
from tidegate.models.initialise import initialise
from tidegate.models.pre_norm import pre_norm_encoder
from tidegate.spec import model as spec
from tidegate.transforms.base import Feature, length_key
from tidegate.transforms.tokens import END, PAD, START

TOKEN_SPREAD, POSITION_SPREAD = 1.0, 0.5
"""Deviations of initial embeddings. With small ones, what attention adds at first drowns the letters themselves: after
two epochs of a quarter of CMUdict 64 words in 100 were wrong, with these 56."""


class Memory(NamedTuple):
    """What the decoder attends to: keys and values of the encoder's states, by layer, and `mask`, a bool
    `[rows, 1, 1, steps]` that is false where a row is padded."""

    keys_values: list[Tensor]
    mask: Tensor

    def layer(self, number: int) -> Memory:
        return Memory(self.keys_values[2 * number : 2 * number + 2], self.mask)

    def repeated(self, times: int) -> Memory:
        """Each row so many times, one after the other."""
        parts = [part.repeat_interleave(times, dim=0) for part in (*self.keys_values, self.mask)]
        return Memory(parts[:-1], parts[-1])


class Seq2Seq(nn.Module):
    """`source` and `written`: embeddings of the tokens read and answered; `encoder`, `decoder`, and `head`."""

    def __init__(self, options: spec.Seq2Seq, features: Sequence[Feature], target: Feature) -> None:
        super().__init__()
        (self.feature,) = features
        self.target, (self.longest,) = target.name, target.shape
        self.beam, self.smoothing = options.beam, options.label_smoothing
        self.source = nn.Embedding(self.feature.cardinality, options.width, padding_idx=PAD)
        self.written = nn.Embedding(target.cardinality, options.width, padding_idx=PAD)
        self.dropout = nn.Dropout(options.dropout)
        if options.network == "transformer":
            self.encoder: AttentionEncoder | RecurrentEncoder = AttentionEncoder(options, self.feature.shape[0])
            self.decoder: AttentionDecoder | RecurrentDecoder = AttentionDecoder(options, self.longest + 1)
        else:
            self.encoder, self.decoder = RecurrentEncoder(options), RecurrentDecoder(options)
        self.head = nn.Linear(options.width, target.cardinality)
        initialise(self, options.init)
        for table in (self.source, self.written):
            nn.init.normal_(table.weight, std=TOKEN_SPREAD)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Codes int64 `[rows, longest]`; where the target is given too, what `_surprise` has of it."""
        lengths = inputs[length_key(self.feature.name)].reshape(-1).long()
        codes = inputs[self.feature.name][:, : int(lengths.max())].long()
        mask = torch.arange(codes.shape[1], device=codes.device) < lengths.unsqueeze(1)
        states, state = self.encoder(self.dropout(self.source(codes)), lengths, ~mask)
        memory = Memory(self.decoder.keys_values(states), mask[:, None, None])
        if self.target in inputs:
            return self._surprise(memory, state, inputs[self.target].long())
        return self._written(memory, state)

    def _surprise(self, memory: Memory, state: State, target: Tensor) -> Tensor:
        """float32 `[rows, 2]`: minus the log likelihood, and of how many tokens: the end is written, too."""
        lengths = (target != PAD).sum(dim=1, keepdim=True)
        longest = int(lengths.max())
        before = functional.pad(target[:, :longest], (1, 0), value=START)
        wanted = functional.pad(target[:, :longest], (0, 1), value=PAD).scatter(1, lengths, END)
        states, _ = self.decoder(self.dropout(self.written(before)), state, memory)
        logits = self.head(self.dropout(states)).float()
        smoothing = self.smoothing if self.training else 0.0
        losses = functional.cross_entropy(
            logits.transpose(1, 2), wanted, ignore_index=PAD, label_smoothing=smoothing, reduction="none"
        )
        return torch.stack([losses.sum(dim=1), lengths[:, 0] + 1.0], dim=1)

    def _written(self, memory: Memory, state: State) -> Tensor:
        beam, rows = self.beam, len(memory.mask)
        wide = memory.repeated(beam)

        def step(last: Tensor, state: State) -> tuple[Tensor, State]:
            states, state = self.decoder(self.written(last), state, wide)
            return self.head(states[:, -1]), state

        begun = [part.repeat_interleave(beam, dim=0) for part in state]
        return beam_search(step, begun, rows=rows, beam=beam, longest=self.longest)


class RecurrentEncoder(nn.Module):
    """A GRU in both directions. Its last state, through `bridge`, is what the decoder begins with."""

    def __init__(self, options: spec.Seq2Seq) -> None:
        super().__init__()
        width, layers = options.width, options.layers
        self.layers = layers
        self.cells = nn.GRU(
            width,
            width // 2,
            layers,
            batch_first=True,
            bidirectional=True,
            dropout=options.dropout if layers > 1 else 0.0,
        )
        self.bridge = nn.Linear(width, width)

    def forward(self, embedded: Tensor, lengths: Tensor, padding: Tensor) -> tuple[Tensor, State]:
        packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, last = self.cells(packed)
        states, _ = pad_packed_sequence(states, batch_first=True)
        both = last.unflatten(0, (self.layers, 2)).permute(2, 0, 1, 3).flatten(2)
        return states, [self.bridge(both).tanh()]


class RecurrentDecoder(nn.Module):
    """A GRU over what is written; each of its states attends to the encoder's, and both are joined in `mixed`."""

    def __init__(self, options: spec.Seq2Seq) -> None:
        super().__init__()
        width = options.width
        dropout = options.dropout if options.layers > 1 else 0.0
        self.cells = nn.GRU(width, width, options.layers, batch_first=True, dropout=dropout)
        self.attention = CachedAttention(width, options.heads)
        self.mixed = nn.Linear(2 * width, width)

    def keys_values(self, states: Tensor) -> list[Tensor]:
        """Of the encoder's states `[rows, steps, width]`."""
        return self.attention.keys_values(states)

    def forward(self, embedded: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """`embedded` and the answer `[rows, steps, width]`; the state is that of the cells `[rows, layers, width]`."""
        states, last = self.cells(embedded, state[0].transpose(0, 1).contiguous())
        found = self.attention.attend(states, memory.keys_values, memory.mask)
        return self.mixed(torch.cat([found, states], dim=2)).tanh(), [last.transpose(0, 1)]


class AttentionEncoder(nn.Module):
    """A pre-norm transformer encoder with learned positions. The decoder begins with nothing written."""

    def __init__(self, options: spec.Seq2Seq, longest: int) -> None:
        super().__init__()
        width = options.width
        self.depth, self.heads = options.layers, options.heads
        self.positions = nn.Embedding(longest, width)
        self.layers = pre_norm_encoder(width, options.heads, options.layers, options.dropout, nn.LayerNorm(width))
        nn.init.normal_(self.positions.weight, std=POSITION_SPREAD)

    def forward(self, embedded: Tensor, lengths: Tensor, padding: Tensor) -> tuple[Tensor, State]:
        places = torch.arange(embedded.shape[1], device=embedded.device)
        states = self.layers(embedded + self.positions(places), src_key_padding_mask=padding)
        nothing = states.new_zeros(len(states), self.heads, 0, states.shape[2] // self.heads)
        return states, [nothing] * (2 * self.depth)


class AttentionDecoder(nn.Module):
    """Pre-norm decoder layers with learned positions. The state is each layer's keys and values of what is written."""

    def __init__(self, options: spec.Seq2Seq, longest: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(longest, options.width)
        self.layers = nn.ModuleList(DecoderLayer(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.width)
        nn.init.normal_(self.positions.weight, std=POSITION_SPREAD)

    def keys_values(self, states: Tensor) -> list[Tensor]:
        """Each layer's, of the encoder's states `[rows, steps, width]`."""
        return [part for layer in self.layers for part in cast(DecoderLayer, layer).other.keys_values(states)]

    def forward(self, embedded: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """`embedded` and the answer `[rows, steps, width]`."""
        before, steps = state[0].shape[2], embedded.shape[1]
        places = torch.arange(before, before + steps, device=embedded.device)
        states, written = embedded + self.positions(places), []
        causal = torch.arange(before + steps, device=embedded.device) <= places.unsqueeze(1)
        for number, layer in enumerate(self.layers):
            past = state[2 * number : 2 * number + 2]
            states, past = layer(states, past, causal, memory.layer(number))
            written += past
        return self.norm(states), written


class DecoderLayer(nn.Module):
    """What nn.TransformerDecoderLayer computes with `norm_first`, for the last steps of a sequence begun before."""

    def __init__(self, options: spec.Seq2Seq) -> None:
        super().__init__()
        width, heads, dropout = options.width, options.heads, options.dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.itself, self.other = (CachedAttention(width, heads, dropout) for _ in range(2))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, past: State, causal: Tensor, memory: Memory) -> tuple[Tensor, State]:
        queries = self.norms[0](states)
        past = [torch.cat(parts, dim=2) for parts in zip(past, self.itself.keys_values(queries), strict=True)]
        states = states + self.dropout(self.itself.attend(queries, past, causal))
        found = self.other.attend(self.norms[1](states), memory.keys_values, memory.mask)
        states = states + self.dropout(found)
        inner = self.dropout(functional.gelu(self.wide(self.norms[2](states))))
        return states + self.dropout(self.narrow(inner)), past
