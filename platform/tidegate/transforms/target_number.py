"""A number to predict, or several: standardised, and the way back to the user's unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tidegate.errors import RequestError
from tidegate.metrics import Task
from tidegate.signature import TensorSpec
from tidegate.spec.data import NumberTarget
from tidegate.transforms.arrow import fixed_lists
from tidegate.transforms.base import Array, Feature, State, fits, merged_moments, moments
from tidegate.transforms.number import LARGEST, TOO_LARGE, to_numbers


class NumberTargetColumn:
    """Canonical: float64 `[rows, length]`."""

    def __init__(self, spec: NumberTarget) -> None:
        self.length = spec.length
        self.row_bytes = 4 * spec.length + 4

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        values, found = to_numbers(column, self.length)
        found[~np.isfinite(values).all(axis=1) & fits(found)] = "the number is missing or not finite"
        found[(np.abs(values) > LARGEST).any(axis=1) & fits(found)] = TOO_LARGE
        return fixed_lists(values), found

    def partial(self, values: Array) -> State:
        return moments(values.reshape(-1, 1))

    def fit(self, parts: Sequence[State]) -> State:
        _, mean, deviation = merged_moments(parts)
        several = {"length": self.length} if self.length > 1 else {}
        return {"type": "number", "mean": float(mean[0]), "deviation": float(deviation[0]) or 1.0} | several


class NumberTargetTransform:
    """float32 standardised numbers `[rows]`, `[rows, length]` of several; a model gives `[rows, length]`."""

    task: Task = "regression"

    def __init__(self, column: str, state: State) -> None:
        self.column = column
        self.classes: list[str] = []
        self.mean, self.deviation = float(state["mean"]), float(state["deviation"])
        self.loss_scale = self.deviation**2
        self._shape = (-1, int(state["length"])) if "length" in state else (-1,)
        self.feature = Feature(column, "number", self._shape[1:])

    def apply(self, values: Array) -> Array:
        with np.errstate(over="ignore"):
            result: Array = ((values.reshape(self._shape) - self.mean) / self.deviation).astype(np.float32)
        if not np.isfinite(result).all():
            raise RequestError(f"{self.column} holds a number too large to use", expected="finite float32 values")
        return result

    def unscaled(self, outputs: Any) -> Any:
        return outputs * self.deviation + self.mean

    def tensors(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(self.column, "FP32", self._shape),)

    def answers(self, outputs: Array) -> dict[str, Array]:
        return {self.column: self.unscaled(outputs.astype(np.float64)).astype(np.float32).reshape(self._shape)}
