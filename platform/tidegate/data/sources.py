"""Sources: which files they are, and how Ray Data reads them, in a fixed order."""

from __future__ import annotations

import fnmatch
import json
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.fs as pafs

from tidegate.data.formats import FORMATS, Piece, readable
from tidegate.errors import DataError
from tidegate.spec.data import FORMATS as ENDINGS
from tidegate.spec.data import Source

if TYPE_CHECKING:
    from ray.data import Dataset


BLOCK_BYTES = 16 * 2**20
"""About how much of a source one task reads: a small source takes few tasks, and so few processes to start."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source as it is now."""

    path: str
    size: int
    modified_ns: int


def listing(source: Source) -> list[SourceFile]:
    """The files of a source, sorted by path. Raises DataError when there are none or they cannot be listed."""
    try:
        filesystem, path = _locate(source.path)
        files = _matching(filesystem, path, source)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(
            f"the source {source.path} cannot be read: {error}", remedy="correct data.source.path"
        ) from None
    if not files:
        raise DataError(f"the source {source.path} does not exist or holds no file", remedy="correct data.source.path")
    return [
        SourceFile(file.path, file.size or 0, file.mtime_ns or 0) for file in sorted(files, key=lambda file: file.path)
    ]


def read(
    source: Source, files: list[SourceFile], columns: list[str], convert: Callable[[pa.Table], pa.Table]
) -> Dataset:
    """A dataset of these columns, rows in the order of the files. Nothing is read yet.

    `convert` brings tables whose types may differ from file to file to one schema, before Ray joins them.
    """
    import ray.data

    filesystem, _ = _locate(source.path)
    kind = source.resolved_format()
    units = [json.dumps(unit) for unit in _units(filesystem, files, kind)]
    reader = UnitReader(filesystem, kind, columns, convert)
    return ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units)).map_batches(
        reader, batch_format="pyarrow", batch_size=None
    )


def column_names(source: Source, files: list[SourceFile]) -> list[str]:
    """The columns of the first file. Raises DataError when it cannot be read."""
    filesystem, _ = _locate(source.path)
    kind = source.resolved_format()
    with readable(files[0].path, kind):
        return FORMATS[kind].names(filesystem, files[0].path)


def _units(filesystem: pafs.FileSystem, files: list[SourceFile], kind: str) -> list[list[Piece]]:
    """What each task reads: some small files, or a part of a large one. A task costs more than reading a small file."""
    units: list[list[Piece]] = []
    room = 0
    for file in files:
        for piece, size in _pieces(filesystem, file, kind):
            if size > room:
                units.append([])
                room = BLOCK_BYTES
            units[-1].append(piece)
            room -= size
    return units


def _pieces(filesystem: pafs.FileSystem, file: SourceFile, kind: str) -> list[tuple[Piece, int]]:
    if file.size <= BLOCK_BYTES:
        return [((file.path, None), file.size)]
    with readable(file.path, kind):
        parts = FORMATS[kind].parts(filesystem, file.path)
    return [((file.path, part), file.size // len(parts)) for part in parts]


class UnitReader:
    """The map step that reads a unit's pieces."""

    def __init__(
        self, filesystem: pafs.FileSystem, kind: str, columns: list[str], convert: Callable[[pa.Table], pa.Table]
    ) -> None:
        self.filesystem, self.kind, self.columns, self.convert = filesystem, kind, columns, convert

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for unit in block.column("unit").to_pylist():
            for path, part in json.loads(unit):
                for table in self._tables(path, part):
                    yield self.convert(table)

    def _tables(self, path: str, part: list[int] | None) -> Iterator[pa.Table]:
        with readable(path, self.kind):
            yield from FORMATS[self.kind].tables(self.filesystem, path, part, self.columns)


def _locate(path: str) -> tuple[pafs.FileSystem, str]:
    if "://" in path:
        filesystem, inner = pafs.FileSystem.from_uri(path)
        return filesystem, inner
    return pafs.LocalFileSystem(), path


def _matching(filesystem: pafs.FileSystem, path: str, source: Source) -> list[pafs.FileInfo]:
    if any(mark in path for mark in "*?["):
        root = posixpath.dirname(path.split("*")[0].split("?")[0].split("[")[0])
        found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
        return [info for info in found if info.is_file and fnmatch.fnmatchcase(info.path, path)]
    info = filesystem.get_file_info(path)
    if info.type != pafs.FileType.Directory:
        return [info] if info.is_file else []
    endings = tuple(ending for ending, kind in ENDINGS.items() if kind == source.resolved_format())
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    return [info for info in found if info.is_file and info.path.endswith(endings) and not _hidden(info.path, path)]


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(root) :].split("/") if part)
