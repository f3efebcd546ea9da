"""What a transform is.

A column goes through three forms. `read` takes the source's Arrow column and gives *canonical* values plus, for every
row that does not fit, the problem in words. `partial` and `fit` learn a state from canonical values, in pieces that are
merged in a fixed order so that the state does not depend on the cluster. `apply` gives the arrays a model takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidegate.signature import TensorSpec

Array = npt.NDArray[Any]
State = dict[str, Any]


@dataclass(frozen=True)
class Feature:
    """A model's input after its transform, or its target: arrays `[rows, *shape]` of `cardinality` codes, if any.

    With `has_bucket`, the last code stands for whatever the training split does not hold: no training row has it.
    """

    name: str
    kind: Literal["number", "category", "text", "image", "series"]
    shape: tuple[int, ...]
    cardinality: int = 0
    has_bucket: bool = False


class Canonical(Protocol):
    """Reads a source column. Made from the spec alone."""

    row_bytes: int
    """Bytes of the model's arrays for one row."""

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        """Canonical values as an Arrow array, and an object array `[rows]` of problems (None where there is none)."""

    def partial(self, values: Array) -> State:
        """What `fit` needs to know of some rows; JSON-able."""

    def fit(self, parts: Sequence[State]) -> State:
        """The state, from the parts of all files of the training split in their order."""


class Transform(Protocol):
    """Applies a fitted state. Made from the state alone."""

    feature: Feature
    tensor: TensorSpec
    """How the endpoint takes this column."""

    def apply(self, values: Array) -> dict[str, Array]:
        """Canonical values `[rows, ...]` -> named arrays for the model. RequestError for values it cannot take."""

    def example(self, rows: int) -> Array:
        """Canonical values that are valid, for a warm-up."""


def length_key(name: str) -> str:
    """The name of the array that holds how much of each row of an input is no padding: int32 `[rows, 1]`."""
    return f"__length.{name}"


def merged_counts(parts: Sequence[State]) -> dict[str, int]:
    """The sum of the parts' `counts`."""
    total: dict[str, int] = {}
    for part in parts:
        for value, count in part["counts"].items():
            total[value] = total.get(value, 0) + count
    return total


def problems(rows: int) -> Array:
    """No problem in any row, yet."""
    return np.full(rows, None, dtype=object)


def shortened(text: str) -> str:
    """At most 40 characters of a value, for a message."""
    return text if len(text) <= 40 else f"{text[:37]}..."


def fits(found: Array) -> Array:
    """Which rows have no problem: bool `[rows]`."""
    return np.fromiter((problem is None for problem in found), bool, len(found))


def moments(values: Array) -> State:
    """Count, mean and sum of squared deviations of each column of `values` `[rows, columns]`, NaN left out."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    # Counted from a value of the column, so that a constant column has exactly that mean and no deviation at all.
    first = values[known.argmax(axis=0), np.arange(values.shape[1])] if len(values) else np.zeros(values.shape[1])
    origin = np.where(count > 0, first, 0.0)
    mean = origin + np.where(known, values - origin, 0.0).sum(axis=0) / np.maximum(count, 1)
    deviation = np.where(known, values - mean, 0.0)
    return {"count": count.tolist(), "mean": mean.tolist(), "m2": (deviation**2).sum(axis=0).tolist()}


def merged_moments(parts: Sequence[Mapping[str, Any]]) -> tuple[Array, Array, Array]:
    """Count, mean and standard deviation over all parts (Chan, Golub, LeVeque 1979, equation 2.1)."""
    count, mean, m2 = (np.asarray(parts[0][key], dtype=np.float64) for key in ("count", "mean", "m2"))
    for part in parts[1:]:
        n, part_mean, part_m2 = (np.asarray(part[key], dtype=np.float64) for key in ("count", "mean", "m2"))
        total = np.maximum(count + n, 1)
        delta = part_mean - mean
        mean = mean + delta * (n / total)
        m2 = m2 + part_m2 + delta**2 * count * n / total
        count = count + n
    return count, mean, np.sqrt(m2 / np.maximum(count, 1))
