"""Series: steps of one or several numbers, of any length up to a bound, standardised by channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tidegate.errors import RequestError
from tidegate.signature import TensorSpec
from tidegate.spec.data import SeriesInput
from tidegate.transforms.arrow import fixed_lists
from tidegate.transforms.base import (
    Array,
    Feature,
    State,
    fits,
    length_key,
    merged_moments,
    moments,
    problems,
)
from tidegate.transforms.number import LARGEST, TOO_LARGE


class SeriesColumn:
    """Reads a column of lists of numbers, or of lists of `channels` numbers.

    Canonical: float64 `[rows, max_length * channels]`, step by step, NaN after a series' end.
    """

    def __init__(self, spec: SeriesInput) -> None:
        self.spec = spec
        self.row_bytes = 4 * spec.max_length * spec.channels + 4

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        found = problems(len(column))
        values = np.full((len(column), self.spec.max_length * self.spec.channels), np.nan)
        for row, item in enumerate(column.to_pylist()):
            steps = self._steps(item)
            if isinstance(steps, str):
                found[row] = steps
            else:
                values[row, : steps.size] = steps.reshape(-1)
        found[(np.abs(values) > LARGEST).any(axis=1) & fits(found)] = TOO_LARGE
        return fixed_lists(values), found

    def _steps(self, item: Any) -> Array | str:
        """The series as `[steps, channels]`, or why it is none."""
        channels, most = self.spec.channels, self.spec.max_length
        if not isinstance(item, list) or not item:
            return "the series is missing or empty"
        try:
            steps = np.asarray(item, np.float64)
        except (TypeError, ValueError):
            return "the series holds something that is no number, or steps of different lengths"
        if steps.ndim == 1 and channels == 1:
            steps = steps.reshape(-1, 1)
        if steps.ndim != 2 or steps.shape[1] != channels:
            return f"the series has the shape {list(steps.shape)}, not steps of {channels} numbers"
        if len(steps) > most:
            return f"the series has {len(steps)} steps, more than max_length {most}"
        return steps if np.isfinite(steps).all() else "the series holds a number that is missing or not finite"

    def partial(self, values: Array) -> State:
        return moments(values.reshape(-1, self.spec.channels))

    def fit(self, parts: Sequence[State]) -> State:
        as_they_are = {"shift": [0.0] * self.spec.channels, "scale": [1.0] * self.spec.channels}
        return {
            "type": "series",
            "max_length": self.spec.max_length,
            "channels": self.spec.channels,
            **(standardising(parts) if self.spec.scale == "standard" else as_they_are),
        }


def standardising(parts: Sequence[State]) -> State:
    """What brings each channel to mean 0 and deviation 1."""
    _, mean, deviation = merged_moments(parts)
    return {"shift": mean.tolist(), "scale": np.where(deviation > 0, deviation, 1.0).tolist()}


class SeriesTransform:
    """(value - shift) / scale as float32 `[rows, max_length * channels]`, 0 after the end; and the number of steps.

    An endpoint takes `[rows, steps, channels]`, or `[rows, steps]` for one channel: all rows of a request are as long.
    """

    def __init__(self, name: str, state: State) -> None:
        self.max_length, self.channels = int(state["max_length"]), int(state["channels"])
        self.shift, self.scale = (np.asarray(state[key], np.float64) for key in ("shift", "scale"))
        self.feature = Feature(name, "series", (self.max_length, self.channels))
        self.tensor = TensorSpec(name, "FP64", (-1, -1) if self.channels == 1 else (-1, -1, self.channels))

    def apply(self, values: Array) -> dict[str, Array]:
        steps = np.asarray(values, np.float64).reshape(len(values), -1, self.channels)
        if steps.shape[1] > self.max_length:
            raise RequestError(
                f"{self.feature.name} has {steps.shape[1]} steps", expected=f"at most {self.max_length} steps"
            )
        known = np.logical_not(np.isnan(steps).any(axis=2))
        lengths = known.sum(axis=1).reshape(-1, 1)
        if (known != (np.arange(known.shape[1]) < lengths)).any() or not lengths.all():
            raise RequestError(f"{self.feature.name} holds NaN, or no step at all", expected="numbers")
        result = np.zeros((len(steps), self.max_length, self.channels), np.float32)
        with np.errstate(over="ignore"):
            result[:, : steps.shape[1]] = np.where(known[:, :, None], (steps - self.shift) / self.scale, 0.0)
        if not np.isfinite(result).all():
            raise RequestError(f"{self.feature.name} holds a number too large to use", expected="finite float32 values")
        name = self.feature.name
        return {name: result.reshape(len(steps), -1), length_key(name): lengths.astype(np.int32)}

    def example(self, rows: int) -> Array:
        # As many steps as there may be: a model may be slow at those.
        steps = np.broadcast_to(self.shift, (rows, self.max_length, self.channels))
        return steps.reshape(rows, self.max_length, *self.tensor.shape[2:])
