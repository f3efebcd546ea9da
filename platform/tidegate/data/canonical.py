"""From the source's columns to canonical ones, with the problem of each row that does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from tidegate.data.prepared import SPLITS, TARGET
from tidegate.data.sources import shown
from tidegate.errors import DataError
from tidegate.spec.data import Data
from tidegate.transforms.base import Array, fits, problems
from tidegate.transforms.category import to_labels
from tidegate.transforms.columns import canonical
from tidegate.transforms.target import target_column

MOST_NAMES = 40
PROBLEM, STRATUM, NAMED = "__problem", "__stratum", "__split"


class Canonicalise:
    """Maps a block of the source to canonical columns."""

    def __init__(self, data: Data) -> None:
        self.data = data

    @property
    def columns(self) -> list[str]:
        """The columns of the source that are read."""
        return sorted(set(self._wanted().values()))

    def _wanted(self) -> dict[str, str]:
        """Columns of the source by the key of the spec that names them."""
        split = {"data.split.stratify": self.data.split.stratify, "data.split.column": self.data.split.column}
        return (
            {f"data.inputs.{name}": name for name in self.data.inputs}
            | {"data.target.column": self.data.target.column}
            | {key: name for key, name in split.items() if name}
        )

    def check(self, names: Sequence[str]) -> None:
        """Raise DataError when the source lacks a column that the spec names."""
        missing = {key: name for key, name in self._wanted().items() if name not in names}
        if missing:
            raise DataError(
                f"the source {shown(self.data.source.path)} has no column "
                + ", ".join(f"{name!r} ({key})" for key, name in missing.items()),
                expected=f"one of its columns: {listed(names)}",
                remedy=nearest(missing, names),
            )

    def __call__(self, block: pa.Table) -> pa.Table:
        found, columns = problems(len(block)), {}
        for name, spec in self.data.inputs.items():
            columns[name] = self._read(canonical(spec).read(column_of(block, name)), name, found)
        target = self.data.target
        columns[TARGET] = self._read(target_column(target).read(column_of(block, target.column)), target.column, found)
        if self.data.split.stratify:
            column = column_of(block, self.data.split.stratify)
            columns[STRATUM] = self._read(to_labels(column), self.data.split.stratify, found)
        if self.data.split.column:
            column = column_of(block, self.data.split.column)
            columns[NAMED] = self._read(_split_names(column), self.data.split.column, found)
        columns[PROBLEM] = pa.array(found.tolist(), pa.string())
        return pa.table(columns)

    @staticmethod
    def _read(result: tuple[pa.Array, Array], name: str, found: Array) -> pa.Array:
        """Note the problems of this column for rows that had none before."""
        values, new = result
        for row in np.flatnonzero(~fits(new) & fits(found)):
            found[row] = f"{name}: {new[row]}"
        return values


def listed(names: Sequence[str]) -> str:
    """Columns in a sentence; of very many, the first."""
    return ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def nearest(missing: Mapping[str, str], names: Sequence[str]) -> str:
    """The columns that may have been meant."""
    by_case = {name.lower(): name for name in names}
    found = {
        key: by_case[close[0]]
        for key, name in missing.items()
        if (close := difflib.get_close_matches(name.strip().lower(), by_case, n=1))
    }
    return f"did you mean {', '.join(f'{name!r} ({key})' for key, name in found.items())}?" if found else ""


def _split_names(column: pa.Array) -> tuple[pa.Array, Array]:
    values, found = to_labels(column)
    for row, value in enumerate(values.to_pylist()):
        if value not in SPLITS and found[row] is None:
            found[row] = f"{value!r} names no split; write train, validation or test"
    return values, found


def column_of(block: pa.Table, name: str) -> pa.Array:
    """One contiguous column; all null where a block of a ragged source lacks it. Tensors become nested lists."""
    if name not in block.column_names:
        return pa.nulls(len(block), pa.string())
    column = block.column(name)
    chunk = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(chunk, pa.ChunkedArray):
        chunk = pa.concat_arrays(chunk.chunks)
    if isinstance(chunk, pa.ExtensionArray):
        is_arrows = isinstance(chunk, pa.FixedShapeTensorArray)
        tensors = chunk.to_numpy_ndarray() if is_arrows else chunk.to_numpy(zero_copy_only=False)
        return pa.array([tensor.tolist() for tensor in tensors])
    return chunk
