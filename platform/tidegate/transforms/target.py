"""The target column: class codes, or a standardised number, and the way back to the user's unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tidegate.errors import RequestError
from tidegate.signature import TensorSpec
from tidegate.spec.data import Target
from tidegate.transforms.base import Array, State, fits, merged_counts, merged_moments, moments
from tidegate.transforms.category import datatype, labels, to_labels, vocabulary
from tidegate.transforms.number import LARGEST, TOO_LARGE, fixed_lists, to_numbers


class TargetColumn:
    """Reads the target. Canonical: strings (category) or float64 `[rows, length]` (number)."""

    def __init__(self, spec: Target) -> None:
        self.spec = spec

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        if self.spec.type == "category":
            return to_labels(column)
        values, found = to_numbers(column, self.spec.length)
        found[~np.isfinite(values).all(axis=1) & fits(found)] = "the number is missing or not finite"
        found[(np.abs(values) > LARGEST).any(axis=1) & fits(found)] = TOO_LARGE
        return fixed_lists(values), found

    def partial(self, values: Array) -> State:
        if self.spec.type == "number":
            return moments(values.reshape(-1, 1))
        names, counts = np.unique(values.astype(str), return_counts=True)
        return {"counts": dict(zip(names.tolist(), counts.tolist(), strict=True))}

    def fit(self, parts: Sequence[State]) -> State:
        if self.spec.type == "category":
            return {"type": "category", "classes": vocabulary(merged_counts(parts))}
        _, mean, deviation = merged_moments(parts)
        several = {"length": self.spec.length} if self.spec.length > 1 else {}
        return {"type": "number", "mean": float(mean[0]), "deviation": float(deviation[0]) or 1.0} | several


class TargetTransform:
    """Between the user's target and what the model is trained on."""

    def __init__(self, column: str, state: State) -> None:
        self.column, self.state = column, state
        self.classes: list[str] = state.get("classes", [])
        self._shape = (-1, int(state["length"])) if "length" in state else (-1,)
        self._codes = {name: code for code, name in enumerate(self.classes)}
        self._labels = labels(self.classes)

    @property
    def is_category(self) -> bool:
        return bool(self.state["type"] == "category")

    @property
    def num_outputs(self) -> int:
        return len(self.classes) if self.is_category else self.state.get("length", 1)

    def apply(self, values: Array) -> Array:
        """int64 class codes `[rows]`, or float32 standardised numbers `[rows]`, `[rows, length]` of several.

        Raises KeyError for a class never seen, RequestError for a number too far from those of the training split.
        """
        if self.is_category:
            return np.asarray([self._codes[str(value)] for value in values.tolist()], np.int64)
        mean, deviation = float(self.state["mean"]), float(self.state["deviation"])
        with np.errstate(over="ignore"):
            result: Array = ((values.reshape(self._shape) - mean) / deviation).astype(np.float32)
        if not np.isfinite(result).all():
            raise RequestError(f"{self.column} holds a number too large to use", expected="finite float32 values")
        return result

    def unscaled(self, outputs: Any) -> Any:
        """Raw model outputs in the user's unit: logits as they are, numbers scaled back. NumPy or torch."""
        return outputs if self.is_category else outputs * self.state["deviation"] + self.state["mean"]

    @property
    def loss_scale(self) -> float:
        """What turns the training loss into the user's unit."""
        return 1.0 if self.is_category else float(self.state["deviation"]) ** 2

    def tensors(self) -> tuple[TensorSpec, ...]:
        """The outputs of an endpoint."""
        if self.is_category:
            return (
                TensorSpec(self.column, datatype(self.classes), (-1,)),
                TensorSpec("probabilities", "FP32", (-1, len(self.classes))),
            )
        return (TensorSpec(self.column, "FP32", self._shape),)

    def answers(self, outputs: Array) -> dict[str, Array]:
        """Raw model outputs `[rows, classes]` or `[rows, length]` -> what an endpoint answers, by output name."""
        if not self.is_category:
            return {self.column: self.unscaled(outputs.astype(np.float64)).astype(np.float32).reshape(self._shape)}
        exponents = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        chosen = self._labels[outputs.argmax(axis=1)]
        return {self.column: chosen, "probabilities": exponents / exponents.sum(axis=1, keepdims=True)}
