"""A class to predict: codes in the order of the sorted classes of the training split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tidegate.metrics import Task
from tidegate.signature import TensorSpec
from tidegate.spec.data import PROBABILITIES
from tidegate.transforms.base import Array, Feature, State, merged_counts
from tidegate.transforms.category import datatype, labels, to_labels, vocabulary


class CategoryTargetColumn:
    """Canonical: strings."""

    row_bytes = 8

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        return to_labels(column)

    def partial(self, values: Array) -> State:
        names, counts = np.unique(values.astype(str), return_counts=True)
        return {"counts": dict(zip(names.tolist(), counts.tolist(), strict=True))}

    def fit(self, parts: Sequence[State]) -> State:
        return {"type": "category", "classes": vocabulary(merged_counts(parts))}


class CategoryTargetTransform:
    """int64 class codes `[rows]`; a model gives logits `[rows, classes]`."""

    task: Task = "classification"
    loss_scale = 1.0

    def __init__(self, column: str, state: State) -> None:
        self.column = column
        self.classes: list[str] = state["classes"]
        self.feature = Feature(column, "category", (), len(self.classes))
        self._codes = {name: code for code, name in enumerate(self.classes)}
        self._labels = labels(self.classes)

    def apply(self, values: Array) -> Array:
        return np.asarray([self._codes[str(value)] for value in values.tolist()], np.int64)

    def unscaled(self, outputs: Any) -> Any:
        return outputs

    def tensors(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(self.column, datatype(self.classes), (-1,)),
            TensorSpec(PROBABILITIES, "FP32", (-1, len(self.classes))),
        )

    def answers(self, outputs: Array) -> dict[str, Array]:
        exponents = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        chosen = self._labels[outputs.argmax(axis=1)]
        return {self.column: chosen, PROBABILITIES: exponents / exponents.sum(axis=1, keepdims=True)}
