"""Sources: which files they are, and how Ray Data reads them, in a fixed order."""

from __future__ import annotations

import fnmatch
import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from tidegate.data import folders
from tidegate.data.formats import FORMATS, Piece, readable, reason
from tidegate.errors import DataError
from tidegate.spec.data import FORMATS as ENDINGS
from tidegate.spec.data import Source

if TYPE_CHECKING:
    from ray.data import Dataset


BLOCK_BYTES = 16 * 2**20
"""About how much of a source one task reads: a small source takes few tasks, and so few processes to start."""


FILES_A_UNIT = 1000
"""Of a source of many small files: reading them from an object store is mostly waiting."""
ASKED_AT_ONCE = 32
SAFE = "/%*:@~!$&'()+,;="
MARKS = "*?["
"""What makes a path a pattern."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source as it is now. `version` is an object store's own mark of the content; empty on a disk."""

    path: str
    size: int
    modified_ns: int
    version: str = ""


def listing(source: Source, *, needs_classes: bool = True) -> list[SourceFile]:
    """The files of a source, sorted by path. Raises DataError when there are none or they cannot be listed.

    With `needs_classes`, files of images, sounds or texts must lie in the folder of a class.
    """
    try:
        filesystem, path = locate(source.path)
        files = sorted(_matching(filesystem, path, source), key=lambda file: str(file.path))
        versions = _versions(filesystem, [file.path for file in files])
    except PermissionError:
        remedy = "give the user the right to read it"
        raise DataError(f"the source {shown(source.path)} may not be read by this user", remedy=remedy) from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(
            f"the source {shown(source.path)} cannot be read: {_without_secrets(reason(error))}",
            remedy="correct data.source.path" + (", or the credentials for it" if "://" in source.path else ""),
        ) from None
    if not files:
        raise DataError(
            f"the source {shown(source.path)} does not exist or holds no file of format {source.resolved_format()}",
            remedy="correct data.source.path",
        )
    found = [
        SourceFile(file.path, file.size or 0, file.mtime_ns or 0, version)
        for file, version in zip(files, versions, strict=True)
    ]
    if needs_classes and source.resolved_format() in folders.CONTENT:
        folders.check(root_of(filesystem, path), [file.path for file in found])
    return found


def kind_of(path: str) -> str:
    """The format of the most files of a folder, by their endings; empty when there is none of a known format."""
    filesystem, inner = locate(path)
    if filesystem.get_file_info(inner).type != pafs.FileType.Directory:
        return ""
    found = filesystem.get_file_info(pafs.FileSelector(inner, recursive=True))
    names = [info.path.lower() for info in found if info.is_file and not _hidden(info.path, inner)]
    kinds = Counter(kind for name in names for end, kind in ENDINGS.items() if name.endswith(end))
    return max(sorted(kinds), key=kinds.__getitem__, default="")


def read(
    source: Source,
    files: list[SourceFile],
    columns: list[str],
    convert: Callable[[pa.Table], pa.Table],
    rows_at_once: int,
) -> Dataset:
    """A dataset of these columns, rows in the order of the files. Nothing is read yet.

    `convert` brings tables whose types may differ from file to file to one schema, before Ray joins them. It is given
    at most `rows_at_once` rows: an image may become a thousand times as large.
    """
    import ray.data

    units = [json.dumps(unit) for unit in _units(locate(source.path)[0], files, source.resolved_format())]
    reader = UnitReader(Reader(source, columns), convert, rows_at_once)
    return ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units)).map_batches(
        reader, batch_format="pyarrow", batch_size=None
    )


def column_names(source: Source, files: list[SourceFile]) -> list[str]:
    """The columns of the first file. Raises DataError when it cannot be read."""
    kind = source.resolved_format()
    if kind in folders.CONTENT:
        return folders.names(kind)
    with readable(files[0].path, kind):
        return FORMATS[kind].names(locate(source.path)[0], files[0].path)


def place(source: Source, files: list[SourceFile], row: int) -> str:
    """How a message names a row, counted over all files from 0: its file, where each row is one."""
    return files[row].path if source.resolved_format() in folders.CONTENT else f"row {row}"


def shown(path: str) -> str:
    """A source's path for a message, without the credentials and options that a URI may carry."""
    return _without_secrets(path).partition("?")[0] if "://" in path else path


def _units(filesystem: pafs.FileSystem, files: list[SourceFile], kind: str) -> list[list[Piece]]:
    """What each task reads: some small files, or a part of a large one. A task costs more than reading a small file."""
    units: list[list[Piece]] = []
    room = 0
    for file in files:
        for piece, size in pieces_of(filesystem, file, kind):
            if size > room or len(units[-1]) == FILES_A_UNIT:
                units.append([])
                room = BLOCK_BYTES
            units[-1].append(piece)
            room -= size
    return units


def pieces_of(filesystem: pafs.FileSystem, file: SourceFile, kind: str) -> list[tuple[Piece, int]]:
    """The pieces that a file is read in, and about how many bytes each has."""
    if file.size <= BLOCK_BYTES or kind in folders.CONTENT:
        return [((file.path, None), file.size)]
    with readable(file.path, kind):
        parts = FORMATS[kind].parts(filesystem, file.path)
    return [((file.path, part), file.size // len(parts)) for part in parts]


class Reader:
    """Reads columns of pieces of a source. May be pickled."""

    def __init__(self, source: Source, columns: list[str]) -> None:
        self.filesystem, path = locate(source.path)
        self.kind, self.root, self.columns = source.resolved_format(), root_of(self.filesystem, path), columns

    def tables(self, pieces: list[Piece]) -> Iterator[pa.Table]:
        """The rows of these pieces, in order. Raises DataError for a file that cannot be read."""
        if self.kind in folders.CONTENT:
            paths = [path for path, _ in pieces]
            with readable(paths[0] if len(paths) == 1 else f"one of {len(paths)} files in {self.root}", self.kind):
                yield from folders.tables(self.filesystem, self.root, paths, self.kind, self.columns)
            return
        for path, part in pieces:
            with readable(path, self.kind):
                yield from FORMATS[self.kind].tables(self.filesystem, path, part, self.columns)


class UnitReader:
    """The map step that reads a unit's pieces."""

    def __init__(self, reader: Reader, convert: Callable[[pa.Table], pa.Table], rows_at_once: int) -> None:
        self.reader, self.convert, self.rows_at_once = reader, convert, rows_at_once

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for unit in block.column("unit").to_pylist():
            for table in self.reader.tables([(path, part) for path, part in json.loads(unit)]):
                for start in range(0, max(1, len(table)), self.rows_at_once):
                    yield self.convert(table.slice(start, self.rows_at_once))


def locate(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    if "://" not in path:
        return pafs.LocalFileSystem(), path
    # A pattern's brackets and blanks are no part of a URI's grammar; `%20` and the like stay as they are written.
    address, mark, options = path.partition("?")
    scheme, _, rest = address.partition("://")
    filesystem, inner = pafs.FileSystem.from_uri(f"{scheme}://{quote(rest, safe=SAFE)}{mark}{options}")
    return filesystem, inner.rstrip("/") or inner


def _matching(filesystem: pafs.FileSystem, path: str, source: Source) -> list[pafs.FileInfo]:
    if _is_pattern(filesystem, path):
        root = _fixed(path)
        found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
        matching = [info for info in found if info.is_file and fnmatch.fnmatchcase(info.path, path)]
        # As in a shell, what is hidden has to be asked for.
        return matching if _hidden(path, root) else [info for info in matching if not _hidden(info.path, root)]
    info = filesystem.get_file_info(path)
    if info.type != pafs.FileType.Directory:
        return [info] if info.is_file else []
    endings = tuple(ending for ending, kind in ENDINGS.items() if kind == source.resolved_format())
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    return [
        info for info in found if info.is_file and info.path.lower().endswith(endings) and not _hidden(info.path, path)
    ]


def _is_pattern(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether a path is a pattern: one that exists as it is written is none."""
    return any(mark in path for mark in MARKS) and filesystem.get_file_info(path).type == pafs.FileType.NotFound


def _fixed(path: str) -> str:
    """The folder that a pattern starts from."""
    return posixpath.dirname(re.split(r"[*?\[]", path, maxsplit=1)[0])


def root_of(filesystem: pafs.FileSystem, path: str) -> str:
    """The folder that a source's files lie in."""
    if _is_pattern(filesystem, path):
        return _fixed(path)
    return path if filesystem.get_file_info(path).type == pafs.FileType.Directory else posixpath.dirname(path)


def _versions(filesystem: pafs.FileSystem, paths: list[str]) -> list[str]:
    """Of each object its store's mark of the content: the time of change that a store tells may be whole seconds."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        return [""] * len(paths)
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(partial(_version, filesystem), paths))


def _version(filesystem: pafs.FileSystem, path: str) -> str:
    with filesystem.open_input_stream(path, compression=None) as stream:
        known = {key.lower(): value for key, value in (stream.metadata() or {}).items()}
    return str(known.get("etag", b"").decode())


def _without_secrets(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://", text)


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(root) :].split("/") if part)
