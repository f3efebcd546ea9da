"""Sources: which files they are, and how Ray Data reads them, in a fixed order."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.fs as pafs

from tidegate.errors import DataError
from tidegate.spec.data import FORMATS, Source

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


def read(source: Source, files: list[SourceFile]) -> Dataset:
    """A dataset over the files, rows in the order of the files. Nothing but a file's schema is read yet."""
    import ray.data

    filesystem, _ = _locate(source.path)
    paths = [file.path for file in files]
    blocks = max(len(files), sum(file.size for file in files) // BLOCK_BYTES)
    kind = source.resolved_format()
    if kind == "parquet":
        with _plain_parquet_reader():
            return ray.data.read_parquet(paths, filesystem=filesystem, override_num_blocks=blocks)
    if kind == "csv":
        return ray.data.read_csv(paths, filesystem=filesystem, override_num_blocks=blocks)
    return ray.data.read_json(paths, filesystem=filesystem, lines=True, override_num_blocks=blocks)


@contextmanager
def _plain_parquet_reader() -> Iterator[None]:
    """Ray 2.60's new Parquet reader starts 32 actors a read to list even one file, which takes longer than the rest."""
    from ray.data import DataContext

    context = DataContext.get_current()
    before = context.use_datasource_v2
    context.use_datasource_v2 = False
    try:
        yield
    finally:
        context.use_datasource_v2 = before


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
    endings = tuple(ending for ending, kind in FORMATS.items() if kind == source.resolved_format())
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    return [info for info in found if info.is_file and info.path.endswith(endings) and not _hidden(info.path, path)]


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(root) :].split("/") if part)
