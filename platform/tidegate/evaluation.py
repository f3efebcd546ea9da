"""Evaluation of a trained model: metrics, a report per class, and the requirements a version must meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tidegate.errors import DataError, TrainingError
from tidegate.metrics import Task, of_task, text, texts_apart
from tidegate.sequence_evaluation import Mistake, Written
from tidegate.transforms.target import TargetTransform
from tidegate.transforms.target_text import TextTargetTransform

NO_ROWS, MORE_ROWS = "there are no rows to evaluate on", "give the split a larger share in data.split"


@dataclass(frozen=True)
class ClassReport:
    """How one class fared. `rows` counts the rows whose true class it is; a ratio without a denominator is 0."""

    name: str
    rows: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Report:
    """All metrics of a model on one split.

    `metrics` leaves out what is undefined on these rows (see `compute`). `confusion[i][j]` counts the rows of true
    class i predicted as class j. Other tasks have no classes: both class fields are empty and `confusion` is None.
    `mistakes` are some rows of a sequence task.
    """

    task: Task
    rows: int
    metrics: dict[str, float]
    classes: tuple[str, ...]
    per_class: list[ClassReport]
    confusion: list[list[int]] | None
    mistakes: tuple[Mistake, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain document of dicts, lists, numbers and strings."""
        return asdict(self) | {"classes": list(self.classes), "mistakes": [asdict(item) for item in self.mistakes]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Report:
        """The report that `to_json` wrote."""
        per_class = [ClassReport(**item) for item in document["per_class"]]
        mistakes = tuple(Mistake(**item) for item in document.get("mistakes", []))
        given = {"classes": tuple(document["classes"]), "per_class": per_class, "mistakes": mistakes}
        return cls(**{**document, **given})


class Bound(Protocol):
    """What a requirement holds: either bound or both, inclusive."""

    @property
    def at_least(self) -> float | None: ...

    @property
    def at_most(self) -> float | None: ...


def measured(target: TargetTransform, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """All metrics of what `validation.outputs` gives. Errors as in `compute`."""
    if isinstance(target, TextTargetTransform):
        return Written.of(target.tokens, _present(outputs), targets).metrics()
    return compute(target.task, *in_unit(target, outputs, targets), of_task(target.task))


def reported(target: TargetTransform, outputs: Tensor, targets: Tensor) -> Report:
    """The report on what `validation.outputs` gives. Errors as in `compute`."""
    if isinstance(target, TextTargetTransform):
        written = Written.of(target.tokens, _present(outputs), targets)
        return Report(target.task, len(targets), written.metrics(), (), [], None, written.mistakes())
    return report(target.task, *in_unit(target, outputs, targets), classes=target.classes)


def in_unit(target: TargetTransform, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the user's unit; those of a regression in the shape of the targets."""
    if target.task == "regression":
        outputs = outputs.reshape(targets.shape)
    return target.unscaled(outputs), target.unscaled(targets)


def _present(outputs: Tensor) -> Tensor:
    if len(outputs) == 0:
        raise DataError(NO_ROWS, remedy=MORE_ROWS)
    _refuse_not_finite(outputs)
    return outputs


def compute(task: Task, outputs: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, float]:
    """The wanted metrics of raw model outputs, computed in double precision on the CPU, in the order asked for.

    Classification: `outputs` are logits [rows, classes] and `targets` class numbers [rows]. A class without any row and
    any prediction does not enter the means of precision, recall and F1. AUROC is the mean over the classes that have
    both rows of their own and rows of others. Regression: both are [rows], or [rows, length], in the target's unit.

    A metric that is undefined on these rows is left out, never nan: AUROC when all rows have one class, R2 when the
    targets do not vary. Raises DataError for no rows and TrainingError for outputs that are not finite.
    """
    unknown = sorted(set(names) - set(of_task(task)))
    if unknown:
        raise ValueError(f"{task} has no metric {unknown[0]!r}; it has {', '.join(of_task(task))}")
    outputs, targets = _checked(task, outputs, targets)
    return _chosen(task, outputs, targets, names)


def report(task: Task, outputs: Tensor, targets: Tensor, *, classes: Sequence[str] = ()) -> Report:
    """All metrics of the task and, for classification, the results per class and the confusion matrix.

    Shapes and errors as in `compute`. `classes` names the columns of `outputs`; empty for regression.
    """
    rows = len(targets)
    outputs, targets = _checked(task, outputs, targets)
    metrics = _chosen(task, outputs, targets, of_task(task))
    if task == "regression":
        return Report(task, rows, metrics, (), [], None)
    if len(classes) != outputs.shape[1]:
        raise ValueError(f"{len(classes)} class names for {outputs.shape[1]} columns of logits")
    predicted = outputs.argmax(dim=1)
    per_class = _per_class(predicted, targets, classes)
    return Report(task, len(targets), metrics, tuple(classes), per_class, _confusion(predicted, targets, len(classes)))


def check(require: Mapping[str, Bound], metrics: Mapping[str, float]) -> list[str]:
    """A sentence for every requirement that is missed; an empty list when all are met.

    Both mappings are keyed by split and metric (`test.accuracy`). A metric that was not measured, or is nan, misses.
    """
    return [sentence for name, bound in require.items() for sentence in _missed(name, bound, metrics.get(name))]


def _missed(name: str, bound: Bound, value: float | None) -> list[str]:
    sentences = []
    if bound.at_least is not None and not (value is not None and value >= bound.at_least):
        sentences.append(_sentence(name, value, "at least", bound.at_least))
    if bound.at_most is not None and not (value is not None and value <= bound.at_most):
        sentences.append(_sentence(name, value, "at most", bound.at_most))
    return sentences


def _sentence(name: str, value: float | None, relation: str, limit: float) -> str:
    if value is None:
        return f"{name} was not measured, required {relation} {text(limit)}"
    found, needed = texts_apart(value, limit)
    return f"{name} is {found}, required {relation} {needed}"


def _checked(task: Task, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the CPU, outputs (and a regression's targets) in double precision."""
    if len(targets) == 0:
        raise DataError(NO_ROWS, remedy=MORE_ROWS)
    if task == "regression" and outputs.shape == targets.shape:
        outputs, targets = outputs.flatten(), targets.flatten()
    ndim = 2 if task == "classification" else 1
    if outputs.ndim != ndim or targets.ndim != 1 or len(outputs) != len(targets):
        raise ValueError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} do not fit {task}")
    outputs = outputs.detach().cpu().double()
    _refuse_not_finite(outputs)
    if task == "regression":
        return outputs, targets.detach().cpu().double()
    targets = targets.detach().cpu().long()
    if targets.min() < 0 or targets.max() >= outputs.shape[1]:
        raise ValueError(f"a target lies outside the {outputs.shape[1]} classes")
    return outputs, targets


def _refuse_not_finite(outputs: Tensor) -> None:
    bad = int((~outputs.isfinite()).sum())
    if bad:
        raise TrainingError(
            f"{bad} of the {outputs.numel()} model outputs are not finite: the training diverged",
            remedy="lower train.optimizer.lr or set train.optimizer.clip_norm",
        )


def _chosen(task: Task, outputs: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, float]:
    value = _classification if task == "classification" else _regression
    values = ((name, value(name, outputs, targets)) for name in names)
    return {name: found for name, found in values if found is not None}


def _classification(name: str, logits: Tensor, targets: Tensor) -> float | None:
    if name == "loss":
        return float(torch.nn.functional.cross_entropy(logits, targets))
    if name == "auroc":
        return _auroc(logits, targets)
    function, average = _by_confusion(name)
    return float(function(logits.argmax(dim=1), targets, logits.shape[1], average=average, validate_args=False))


def _by_confusion(name: str) -> tuple[Callable[..., Tensor], str]:
    """The function of a metric that needs only predicted and true classes, and how it averages over them."""
    from torchmetrics.functional import classification as functional

    functions: dict[str, tuple[Callable[..., Tensor], str]] = {
        "accuracy": (functional.multiclass_accuracy, "micro"),
        "precision": (functional.multiclass_precision, "macro"),
        "recall": (functional.multiclass_recall, "macro"),
        "f1": (functional.multiclass_f1_score, "macro"),
    }
    return functions[name]


def _auroc(logits: Tensor, targets: Tensor) -> float | None:
    from torchmetrics.functional.classification import binary_auroc

    # Probabilities in double precision: in single precision all confident rows tie at 1.
    probabilities = logits.softmax(dim=1)
    counts = targets.bincount(minlength=logits.shape[1])
    defined = [number for number, count in enumerate(counts.tolist()) if 0 < count < len(targets)]
    areas = [
        float(binary_auroc(probabilities[:, number], (targets == number).long(), validate_args=False))
        for number in defined
    ]
    return sum(areas) / len(areas) if areas else None


def _regression(name: str, outputs: Tensor, targets: Tensor) -> float | None:
    from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error

    if name == "mae":
        return float(mean_absolute_error(outputs, targets))
    return _r2(outputs, targets) if name == "r2" else float(mean_squared_error(outputs, targets))


def _r2(outputs: Tensor, targets: Tensor) -> float | None:
    from torchmetrics.functional.regression import r2_score

    if targets.min() == targets.max():
        return None
    # torchmetrics takes sums of squares under 1e-4 for zero. R2 has no unit, so both are given in units of the spread.
    centre, spread = targets.mean(), targets.std(correction=0)
    return float(r2_score((outputs - centre) / spread, (targets - centre) / spread))


def _per_class(predicted: Tensor, targets: Tensor, classes: Sequence[str]) -> list[ClassReport]:
    rows = targets.bincount(minlength=len(classes)).tolist()
    precision, recall, f1 = (
        _by_confusion(name)[0](predicted, targets, len(classes), average="none", validate_args=False).tolist()
        for name in ("precision", "recall", "f1")
    )
    return [ClassReport(*values) for values in zip(classes, rows, precision, recall, f1, strict=True)]


def _confusion(predicted: Tensor, targets: Tensor, num_classes: int) -> list[list[int]]:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    matrix: list[list[int]] = multiclass_confusion_matrix(predicted, targets, num_classes, validate_args=False).tolist()
    return matrix
