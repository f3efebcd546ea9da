"""A prepared dataset: Arrow files with one record batch of fixed-width columns each, and a manifest, written last."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from tidegate.data.random import Rows
from tidegate.errors import DataError
from tidegate.transforms.arrow import fixed_lists, is_list
from tidegate.transforms.base import Array, Feature
from tidegate.transforms.columns import Columns
from tidegate.transforms.target import TargetTransform, target_transform

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
MANIFEST = "manifest.json"
FORMAT = 1
ROW, TARGET = "__row", "__target"
"""Columns of every prepared file: the row's number in the source, and what the model is to predict."""
ADVICE_BYTES = 128 * 2**10
"""Linux brings no more than its read-ahead size for one piece of advice, which is this unless it was changed."""


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
        return target_transform(self.manifest["target"]["column"], self.manifest["target"]["state"])

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
    """Reads rows of a split by number, through memory maps: what is not touched takes no memory.

    The maps of the `keep` files that were read last stay open; by default those of two windows of a plan.
    """

    def __init__(self, files: Sequence[Path], rows: Sequence[int], *, keep: int = 16) -> None:
        self.files, self.offsets, self.keep = list(files), np.concatenate([[0], np.cumsum(rows)]), keep
        self._open: OrderedDict[int, dict[str, Array]] = OrderedDict()

    def read(self, rows: Rows) -> dict[str, Array]:
        """Copies of the given rows, in their order: `[len(rows), ...]` for each column."""
        owner = self.offsets.searchsorted(rows, "right") - 1
        first = int(owner.min()) if len(rows) else 0
        if not len(rows) or owner.max() == first:
            places = rows - self.offsets[first]
            return {name: view[places] for name, view in self._views(first).items()}
        return self._gathered(rows, owner)

    def _gathered(self, rows: Rows, owner: Rows) -> dict[str, Array]:
        """Rows of several files: file by file, and then in their order."""
        order = owner.argsort(kind="stable")
        owner = owner[order]
        places = rows[order] - self.offsets[owner]
        cuts = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(rows)]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        views = self._views(int(owner[0]))
        gathered = {name: np.empty((len(rows), *view.shape[1:]), view.dtype) for name, view in views.items()}
        for start, stop in pairwise(cuts):
            for name, view in self._views(int(owner[start])).items():
                # Every place exists in its file; with the mode that raises, NumPy would copy once more.
                view.take(places[start:stop], axis=0, out=gathered[name][start:stop], mode="clip")
        return {name: array.take(back, axis=0) for name, array in gathered.items()}

    def read_ahead(self, files: Iterable[int]) -> None:
        """Ask the kernel to bring files into memory that are not open yet, where it takes such advice."""
        for file in files:
            if file not in self._open and hasattr(os, "posix_fadvise"):
                with _damage_named(self.files[file]), self.files[file].open("rb") as opened:
                    for start in range(0, os.fstat(opened.fileno()).st_size, ADVICE_BYTES):
                        os.posix_fadvise(opened.fileno(), start, ADVICE_BYTES, os.POSIX_FADV_WILLNEED)

    def _views(self, file: int) -> dict[str, Array]:
        if file not in self._open:
            expected = int(self.offsets[file + 1] - self.offsets[file])
            self._open[file] = open_arrays(self.files[file], expected)
            if len(self._open) > self.keep:
                self._open.popitem(last=False)
        self._open.move_to_end(file)
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
    with _damage_named(path), pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
        if batch.num_rows != rows:
            raise ValueError(f"{batch.num_rows} rows, not {rows}")
        return batch_arrays(batch)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Raise what goes wrong with a prepared file as a DataError that names it."""
    try:
        yield
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
