"""Categories: values become codes, in the order of the sorted vocabulary of the training split."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tidegate.errors import RequestError
from tidegate.signature import TensorSpec
from tidegate.spec.data import CategoryInput
from tidegate.transforms.base import Array, Feature, State, merged_counts, problems, shortened

UNKNOWN = "bucket"
MISSING = "the value is missing"


class CategoryColumn:
    """Reads a column of strings, whole numbers or booleans. Canonical: strings."""

    def __init__(self, spec: CategoryInput) -> None:
        self.spec = spec
        self.row_bytes = 4

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        values, found = to_labels(column)
        if self.spec.missing == "empty":
            found[found == MISSING] = None
        return values, found

    def partial(self, values: Array) -> State:
        names, counts = np.unique(values.astype(str), return_counts=True)
        return {"counts": dict(zip(names.tolist(), counts.tolist(), strict=True))}

    def fit(self, parts: Sequence[State]) -> State:
        return {"type": "category", "unknown": self.spec.unknown, "vocabulary": vocabulary(merged_counts(parts))}


class CategoryTransform:
    """Codes int32 `[rows, 1]`; a value outside the vocabulary gets the last code, or is refused, as the spec says."""

    def __init__(self, name: str, state: State) -> None:
        self.vocabulary: list[str] = state["vocabulary"]
        self.codes = {value: code for code, value in enumerate(self.vocabulary)}
        self.bucket = len(self.vocabulary) if state["unknown"] == UNKNOWN else None
        has_bucket = self.bucket is not None
        self.feature = Feature(name, "category", (1,), len(self.vocabulary) + has_bucket, has_bucket)
        self.tensor = TensorSpec(name, datatype(self.vocabulary), (-1,))

    def apply(self, values: Array) -> dict[str, Array]:
        codes = [self._code(str(value)) for value in np.asarray(values).reshape(-1).tolist()]
        return {self.feature.name: np.asarray(codes, np.int32).reshape(-1, 1)}

    def _code(self, value: str) -> int:
        code = self.codes.get(value, self.bucket)
        if code is None:
            known = ", ".join(self.vocabulary[:10]) + (", ..." if len(self.vocabulary) > 10 else "")
            raise RequestError(f"{self.feature.name} holds {value[:80]!r}", expected=f"one of {known}")
        return code

    def example(self, rows: int) -> Array:
        return labels(self.vocabulary)[np.zeros(rows, int)]


def to_labels(column: pa.Array) -> tuple[pa.Array, Array]:
    """Strings, and a problem for each row that holds neither a string, a whole number nor a boolean."""
    found, values = problems(len(column)), [""] * len(column)
    for row, item in enumerate(column.to_pylist()):
        if isinstance(item, bool):
            values[row] = "true" if item else "false"
        elif isinstance(item, (str, int)):
            values[row] = str(item)
        elif isinstance(item, float) and item.is_integer():
            values[row] = str(int(item))
        elif item is None or item != item:
            found[row] = MISSING
        else:
            found[row] = f"{shortened(repr(item))} is neither a string nor a whole number"
    return pa.array(values, pa.string()), found


def vocabulary(counts: dict[str, int]) -> list[str]:
    """Sorted: by number when every value is a whole number, else by text."""
    return sorted(counts, key=int) if all_whole(counts) else sorted(counts)


def all_whole(values: dict[str, int] | list[str]) -> bool:
    return all(len(value) < 19 and re.fullmatch(r"0|-?[1-9][0-9]*", value) for value in values)


def datatype(values: list[str]) -> str:
    """The protocol's datatype for these values."""
    return "INT64" if all_whole(values) else "BYTES"


def labels(values: list[str]) -> Array:
    """The values as an endpoint sends them: int64, or an object array of strings, `[len(values)]`."""
    if all_whole(values):
        return np.asarray([int(value) for value in values], np.int64)
    result = np.empty(len(values), dtype=object)
    result[:] = values
    return result
