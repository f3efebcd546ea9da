"""Numbers: checked, completed and standardised."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidegate.errors import RequestError
from tidegate.signature import TensorSpec
from tidegate.spec.data import NumberInput
from tidegate.transforms.arrow import fixed_lists, flat_lists, is_list
from tidegate.transforms.base import Array, Feature, State, fits, merged_moments, moments, problems, shortened

GAPS = ("", "na", "n/a", "nan", "null", "none", "?")
"""Words that stand for no value in a column of numbers, in lower case, as tables of other programs have them."""

LARGEST = float(np.finfo(np.float32).max)
"""Models compute in float32, and of larger numbers the square has no float64 any more."""
TOO_LARGE = "a number is too large to use"


class NumberColumn:
    """Reads a column of numbers, or of lists of `length`. Canonical: float64 `[rows, length]`, NaN = missing."""

    def __init__(self, spec: NumberInput) -> None:
        self.spec = spec
        self.row_bytes = 4 * spec.length

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        values, found = to_numbers(column, self.spec.length)
        if self.spec.missing == "refuse":
            missing = np.isnan(values).any(axis=1)
            found[missing & fits(found)] = "a number is missing or NaN"
        found[np.isinf(values).any(axis=1) & fits(found)] = "a number is infinite"
        found[(np.abs(values) > LARGEST).any(axis=1) & fits(found)] = TOO_LARGE
        return fixed_lists(values), found

    def partial(self, values: Array) -> State:
        return moments(values)

    def fit(self, parts: Sequence[State]) -> State:
        _, mean, deviation = merged_moments(parts)
        scaled = self.spec.scale == "standard"
        return {
            "type": "number",
            "length": self.spec.length,
            "missing": self.spec.missing,
            "fill": mean.tolist(),
            "shift": (mean if scaled else np.zeros_like(mean)).tolist(),
            # A constant column has no spread to divide by; it becomes zero.
            "scale": (np.where(deviation > 0, deviation, 1.0) if scaled else np.ones_like(mean)).tolist(),
        }


class NumberTransform:
    """(value - shift) / scale as float32 `[rows, length]`."""

    def __init__(self, name: str, state: State) -> None:
        self.fill, self.shift, self.scale = (np.asarray(state[key], np.float64) for key in ("fill", "shift", "scale"))
        self.missing_allowed = state["missing"] == "mean"
        self.feature = Feature(name, "number", (int(state["length"]),))
        inner = () if state["length"] == 1 else (int(state["length"]),)
        self.tensor = TensorSpec(name, "FP64", (-1, *inner))

    def apply(self, values: Array) -> dict[str, Array]:
        values = np.asarray(values, np.float64).reshape(len(values), -1)
        if np.isnan(values).any():
            if not self.missing_allowed:
                raise RequestError(f"{self.feature.name} holds NaN", expected="numbers")
            values = np.where(np.isnan(values), self.fill, values)
        with np.errstate(over="ignore"):
            result = ((values - self.shift) / self.scale).astype(np.float32)
        if not np.isfinite(result).all():
            raise RequestError(f"{self.feature.name} holds a number too large to use", expected="finite float32 values")
        return {self.feature.name: result}

    def example(self, rows: int) -> Array:
        return np.broadcast_to(self.fill, (rows, *self.feature.shape)).reshape(rows, *self.tensor.shape[1:])


def shaped_numbers(column: pa.Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """As `to_numbers` of flat lists in row-major order, or of lists that are nested as `shape` says."""
    flat, misshapen = flat_lists(column, shape)
    values, found = to_numbers(flat, math.prod(shape))
    return values, np.where(fits(misshapen), found, misshapen)


def to_numbers(column: pa.Array, length: int) -> tuple[Array, Array]:
    """float64 `[rows, length]` (NaN where missing or wrong) and the problem of each row."""
    found = problems(len(column))
    if is_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(lengths != length):
            found[row] = (
                "the list is missing" if lengths[row] < 0 else f"the list holds {lengths[row]} numbers, not {length}"
            )
        values = np.full((len(column), length), np.nan)
        whole = lengths == length
        if whole.any():
            flat, wrong = _cast(column.filter(pa.array(whole)).flatten())
            values[whole] = flat.reshape(-1, length)
            rows = np.flatnonzero(whole)[np.flatnonzero(wrong) // length]
            found[rows] = "the list holds something that is no number"
        return values, found
    if length != 1:
        found[:] = f"a single value where a list of {length} numbers belongs"
        return np.full((len(column), length), np.nan), found
    flat, wrong = _cast(column)
    for row in np.flatnonzero(wrong):
        found[row] = f"{shortened(repr(column[row].as_py()))} is no number"
    return flat.reshape(-1, 1), found


def _cast(column: pa.Array) -> tuple[Array, Array]:
    """float64 `[rows]`, NaN where null or no number; and which of them were no number."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
    if numeric:
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return np.array(values, np.float64), np.zeros(len(column), bool)
    if pa.types.is_string(column.type):
        try:
            return _cast(column.cast(pa.float64()))
        except pa.ArrowInvalid:
            pass  # Something is no number: find out which.
    values, wrong = np.full(len(column), np.nan), np.zeros(len(column), bool)
    for row, item in enumerate(column.to_pylist()):
        if item is None or (isinstance(item, str) and item.strip().lower() in GAPS):
            continue
        try:
            values[row] = float(item)
        except (TypeError, ValueError):
            wrong[row] = True
    return values, wrong
