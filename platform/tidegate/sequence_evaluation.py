"""Evaluation of models that answer with texts: error rates of words, of letters and of whole texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tidegate.transforms.tokens import Tokens

MISTAKES_KEPT = 20


@dataclass(frozen=True)
class Mistake:
    """A row that was answered wrongly."""

    expected: str
    answered: str


@dataclass(frozen=True)
class Written:
    """What was to be written and what was, `[rows]` each, and minus the log likelihood of all `tokens` expected."""

    expected: list[str]
    answered: list[str]
    surprise: float
    tokens: int

    @classmethod
    def of(cls, tokens: Tokens, outputs: Tensor, targets: Tensor) -> Written:
        """From what `validation.outputs` has of a sequence model."""
        answered = tokens.texts(outputs[:, 2:].to(torch.int64).numpy())
        surprise, count = outputs[:, :2].double().sum(dim=0).tolist()
        return cls(tokens.texts(targets.numpy()), answered, surprise, int(count))

    def metrics(self) -> dict[str, float]:
        """`wer` and `cer`: substitutions, insertions and deletions of words (parted by white space) and of letters,
        divided by those expected (Levenshtein 1966). `ser`: texts that are not right in every letter. `loss`: nats a
        token.
        """
        from torchmetrics.functional.text import char_error_rate, word_error_rate

        # torchmetrics sums edit distances in single precision, exact up to 2^24.
        return {
            "wer": float(word_error_rate(self.answered, self.expected)),
            "cer": float(char_error_rate(self.answered, self.expected)),
            "ser": len(self._wrong()) / len(self.expected),
            "loss": self.surprise / self.tokens,
        }

    def mistakes(self) -> tuple[Mistake, ...]:
        """The first rows that were answered wrongly."""
        return tuple(Mistake(*pair) for pair in self._wrong()[:MISTAKES_KEPT])

    def _wrong(self) -> list[tuple[str, str]]:
        pairs = zip(self.expected, self.answered, strict=True)
        return [pair for pair in pairs if pair[0] != pair[1]]
