"""A prepared dataset: Arrow files with one record batch of fixed-width columns each, and a manifest, written last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from tidegate.data.random import Rows
from tidegate.errors import DataError
from tidegate.transforms.base import Array, Feature
from tidegate.transforms.columns import Columns
from tidegate.transforms.number import fixed_lists, is_list
from tidegate.transforms.target import TargetTransform

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
MANIFEST = "manifest.json"
FORMAT = 1
ROW, TARGET = "__row", "__target"
"""Columns of every prepared file: the row's number in the source, and what the model is to predict."""


@dataclass(frozen=True)
class Prepared:
    """An opened prepared dataset."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @cached_property
    def columns(self) -> Columns:
        return Columns(self.manifest["columns"])

    @cached_property
    def target(self) -> TargetTransform:
        return TargetTransform(self.manifest["target"]["column"], self.manifest["target"]["state"])

    @property
    def features(self) -> list[Feature]:
        return [column.feature for column in self.columns.transforms.values()]

    def rows_per_file(self, split: SplitName) -> tuple[int, ...]:
        return tuple(file["rows"] for file in self.manifest["splits"][split])

    def num_rows(self, split: SplitName) -> int:
        return sum(self.rows_per_file(split))

    def files(self, split: SplitName) -> list[Path]:
        return [self.folder / file["name"] for file in self.manifest["splits"][split]]

    def reader(self, split: SplitName) -> Reader:
        return Reader(self.files(split), self.rows_per_file(split))


class Reader:
    """Reads rows of a split by number, through memory maps: what is not touched takes no memory."""

    def __init__(self, files: Sequence[Path], rows: Sequence[int]) -> None:
        self.files, self.offsets = list(files), np.concatenate([[0], np.cumsum(rows)])
        self._open: dict[int, dict[str, Array]] = {}

    def read(self, rows: Rows) -> dict[str, Array]:
        """Copies of the given rows, in their order: `[len(rows), ...]` for each column."""
        owner = np.searchsorted(self.offsets, rows, "right") - 1
        needed = np.unique(owner)
        if len(needed) == 1:
            start = self.offsets[needed[0]]
            return {name: view[rows - start] for name, view in self._views(int(needed[0])).items()}
        result = {name: np.empty((len(rows), *view.shape[1:]), view.dtype) for name, view in self._views(0).items()}
        for file in needed:
            places = np.flatnonzero(owner == file)
            for name, view in self._views(int(file)).items():
                result[name][places] = view[rows[places] - self.offsets[file]]
        return result

    def _views(self, file: int) -> dict[str, Array]:
        if file not in self._open:
            expected = int(self.offsets[file + 1] - self.offsets[file])
            self._open[file] = open_arrays(self.files[file], expected)
        return self._open[file]


def open_folder(folder: Path) -> Prepared:
    """Open a prepared dataset. Raises DataError when it is incomplete or of another format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, not {FORMAT}")
        if missing := {"fingerprint", "columns", "target"} - set(manifest):
            raise ValueError(f"{MANIFEST} lacks {', '.join(sorted(missing))}")
        for split in SPLITS:
            for file in manifest["splits"][split]:
                size = (folder / file["name"]).stat().st_size
                if size != file["bytes"] or file["rows"] < 1:
                    raise ValueError(f"{file['name']} has {size} bytes, not {file['bytes']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the prepared dataset {folder} cannot be used: {error}", remedy="delete it; it is made anew"
        ) from None
    return Prepared(folder, manifest)


def open_arrays(path: Path, rows: int) -> dict[str, Array]:
    """Zero-copy views `[rows, ...]` of every column of an Arrow file. Raises DataError when it is damaged."""
    try:
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
            if batch.num_rows != rows:
                raise ValueError(f"{batch.num_rows} rows, not {rows}")
            return batch_arrays(batch)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"the prepared file {path} is damaged: {error}", remedy="delete its folder; it is made anew"
        ) from None


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> int:
    """Write one record batch; returns the size in bytes."""
    batch = arrays_batch(arrays)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return path.stat().st_size


def arrays_batch(arrays: Mapping[str, Array]) -> pa.RecordBatch:
    """One record batch; arrays of two dimensions become lists of fixed width."""
    columns = {name: pa.array(array) if array.ndim == 1 else fixed_lists(array) for name, array in arrays.items()}
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def batch_arrays(batch: pa.RecordBatch) -> dict[str, Array]:
    """The inverse of `arrays_batch`, without copying numbers."""
    return {name: column_array(batch.column(name)) for name in batch.schema.names}


def column_array(column: pa.Array) -> Array:
    """Numbers as `[rows]`, lists of fixed width as `[rows, width]`, strings as an object array."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if is_list(column.type):
        width = column.type.list_size
        flat: Array = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), width)
    values: Array = column.to_numpy(zero_copy_only=False)
    return values
