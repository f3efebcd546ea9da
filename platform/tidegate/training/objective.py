"""What training minimises: cross entropy of classes, squared error of numbers, minus the log likelihood of texts, or a
person's own loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tidegate.data.prepared import TARGET, Prepared, open_arrays
from tidegate.errors import SpecError
from tidegate.models import custom
from tidegate.models.code import Code
from tidegate.spec.model import Custom
from tidegate.spec.run import Spec

Objective = Callable[[Tensor, Tensor], tuple[Tensor, float]]
"""Of outputs and targets: the mean loss, and what it is the mean over (rows, or the sum of their weights)."""


def objective(spec: Spec, code: Code, weights: Tensor | None) -> Objective:
    """The loss of a spec; `weights` is one a class, or None."""
    own = custom.loss(spec.model, code) if isinstance(spec.model, Custom) else None
    if own is not None:
        return lambda outputs, targets: (own(outputs, targets), float(len(targets)))
    if spec.task == "regression":
        return lambda outputs, targets: (
            functional.mse_loss(outputs.float().reshape(targets.shape), targets),
            float(len(targets)),
        )
    if spec.task == "sequence":
        return _a_token
    if weights is None:
        return lambda outputs, targets: (functional.cross_entropy(outputs.float(), targets), float(len(targets)))
    return lambda outputs, targets: (
        functional.cross_entropy(outputs.float(), targets, weight=weights),
        float(weights[targets].sum()),
    )


def _a_token(surprises: Tensor, _: Tensor) -> tuple[Tensor, float]:
    """The mean over the tokens of all rows: a long text counts for more than a short one."""
    surprise, tokens = surprises.sum(dim=0)
    return surprise / tokens, float(tokens)


def class_weights(spec: Spec, prepared: Prepared, device: torch.device) -> Tensor | None:
    """The weight of each class, by its code; None for none.

    `balanced` is rows / (classes * rows of the class) of the training split, as scikit-learn has it. Raises SpecError
    for a class that the target does not have, or one without a weight.
    """
    wanted, classes = spec.train.class_weights, prepared.target.classes
    if wanted is None:
        return None
    if wanted == "balanced":
        counts = class_counts(prepared)
        return torch.tensor([sum(counts) / (len(counts) * max(1, count)) for count in counts], device=device)
    if set(wanted) != set(classes):
        raise SpecError(
            f"train.class_weights names {', '.join(sorted(wanted))}",
            expected=f"a weight for each class: {', '.join(classes)}",
        )
    return torch.tensor([wanted[name] for name in classes], device=device)


def class_counts(prepared: Prepared) -> list[int]:
    """Rows of each class in the training split."""
    total = np.zeros(len(prepared.target.classes), np.int64)
    for path, rows in zip(prepared.files("train"), prepared.rows_per_file("train"), strict=True):
        total += np.bincount(open_arrays(path, rows)[TARGET], minlength=len(total))
    return [int(count) for count in total]
