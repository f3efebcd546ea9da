"""The metrics a spec may name, and which direction of each is better. Pure names: nothing heavy is imported."""

from __future__ import annotations

from typing import Literal

Task = Literal["classification", "regression", "sequence"]

CLASSIFICATION = ("accuracy", "precision", "recall", "f1", "auroc", "loss")
"""Precision, recall and F1 are means over the classes (macro); AUROC is one class against the rest, macro."""

REGRESSION = ("mse", "mae", "r2", "loss")
"""In the unit of the target; the loss is the mean squared error."""

SEQUENCE = ("wer", "cer", "ser", "loss")
"""Error rates of words, of letters and of whole texts; the loss is in nats a token."""

HEADLINES = {"classification": ("accuracy",), "regression": ("r2", "mae"), "sequence": ("wer", "cer")}
"""What a summary shows when the spec does not say."""

HIGHER_IS_BETTER: dict[str, bool] = {
    "accuracy": True,
    "precision": True,
    "recall": True,
    "f1": True,
    "auroc": True,
    "mse": False,
    "mae": False,
    "r2": True,
    "wer": False,
    "cer": False,
    "ser": False,
    "loss": False,
}


def of_task(task: Task) -> tuple[str, ...]:
    """All metrics of a task, in the order a report shows them."""
    return {"classification": CLASSIFICATION, "regression": REGRESSION, "sequence": SEQUENCE}[task]


def text(value: float, digits: int = 4) -> str:
    """`0.9611`, `2859.7`, `1.2e-06`: `digits` decimals for values about one, else significant digits."""
    size = abs(value)
    if value == 0 or 10.0 ** (1 - digits) <= size < 10:
        return f"{value:.{digits}f}"
    if 10 <= size < 10 ** (digits + 2):
        return f"{value:.{max(1, digits - len(str(int(size))) + 1)}f}"
    return f"{value:.{digits}g}"


def texts_apart(value: float, bound: float) -> tuple[str, str]:
    """Both numbers with as many digits as it takes to tell them apart: 0.97996 against 0.98, not 0.9800 twice."""
    for digits in range(4, 17):
        pair = text(value, digits), text(bound, digits)
        if pair[0] != pair[1]:
            return pair
    return repr(value), repr(bound)
