"""Evaluation of models that answer with texts: error rates of words, of letters and of whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tidegate.transforms.base import Array
from tidegate.transforms.tokens import PAD, Tokens

MISTAKES_KEPT = 20


@dataclass(frozen=True)
class Mistake:
    """A row that was answered wrongly."""

    expected: str
    answered: str


def compute(tokens: Tokens, surprise: Tensor, answered: Array, targets: Array) -> dict[str, float]:
    """Metrics of codes `[rows, length]`; `surprise` `[rows]` is minus the log likelihood of each target.

    `wer` and `cer`: substitutions, insertions and deletions of words (parted by white space) and of letters, divided by
    those expected (Levenshtein 1966). `ser`: texts that are not right in every letter. `loss`: nats a token.
    """
    from torchmetrics.functional.text import char_error_rate, word_error_rate

    expected, found = tokens.texts(targets), tokens.texts(answered)
    wrong = sum(one != other for one, other in zip(expected, found, strict=True))
    # torchmetrics sums edit distances in single precision, exact up to 2^24.
    return {
        "wer": float(word_error_rate(found, expected)),
        "cer": float(char_error_rate(found, expected)),
        "ser": wrong / len(expected),
        "loss": float(surprise.double().sum()) / int((targets != PAD).sum()),
    }


def mistakes(tokens: Tokens, answered: Array, targets: Array) -> tuple[Mistake, ...]:
    """The first rows that were answered wrongly."""
    pairs: Sequence[tuple[str, str]] = list(zip(tokens.texts(targets), tokens.texts(answered), strict=True))
    return tuple(Mistake(*pair) for pair in pairs if pair[0] != pair[1])[:MISTAKES_KEPT]


def parted(outputs: Tensor) -> tuple[Tensor, Array]:
    """What `validation.outputs` has of a sequence model: surprises `[rows]`, and codes `[rows, length]`."""
    return outputs[:, 0], outputs[:, 1:].to(torch.int64).numpy()
