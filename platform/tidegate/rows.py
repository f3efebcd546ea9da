"""The rows that a model is asked about: of files, of folders of files, or of a stream, in tables of bounded size.

The values are as they stand: of CSV all of them text. Nothing is read before it is asked for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from tidegate.data import folders, sources
from tidegate.data.formats import CHUNK_ROWS, FORMATS, array, objects, readable, reason
from tidegate.data.sources import SourceFile
from tidegate.errors import DataError
from tidegate.spec.data import Source, format_of

STREAM = "-"
STREAM_ROWS = 1024
"""Of a stream, so many rows are waited for at most before the first are answered."""
KINDS = "CSV, Parquet, JSON lines, JSON, or a folder or pattern of such files, images, sounds or texts"


class Chunk(NamedTuple):
    """Some rows of a file, in order; `start` is the number of the first. Where each file is a row, `path` is empty."""

    table: pa.Table
    path: str
    start: int

    def place(self, row: int) -> str:
        """How a message names a row."""
        if not self.path:
            return str(self.table.column(folders.PATH)[row])
        return f"{self.path}, row {self.start + row}"

    def parts(self, rows: int) -> Iterator[Chunk]:
        """The same in chunks of at most so many rows."""
        for start in range(0, len(self.table), rows):
            yield self._replace(table=self.table.slice(start, rows), start=self.start + start)


@dataclass(frozen=True)
class Rows:
    """The rows of a source of files. May be pickled."""

    source: Source
    files: tuple[SourceFile, ...]
    columns: tuple[str, ...]
    """Those of the first file."""
    root: str

    @property
    def kind(self) -> str:
        return self.source.resolved_format()

    @property
    def content(self) -> str | None:
        """The column that holds a whole file's content, where each row is a file."""
        return folders.CONTENT.get(self.kind)

    def chunks(self) -> Iterator[Chunk]:
        """All rows, file by file."""
        if self.content:
            yield from self.contents([file.path for file in self.files])
        else:
            for file in self.files:
                yield from self.of_file(file.path)

    def of_file(self, path: str, groups: list[int] | None = None, start: int = 0) -> Iterator[Chunk]:
        """The rows of a file; with `groups` those of a Parquet file's row groups, the first of which is row `start`."""
        filesystem = sources.locate(self.source.path)[0]
        with readable(path, self.kind):
            for table in _tables(filesystem, path, self.kind, groups):
                yield Chunk(table, path, start)
                start += len(table)

    def contents(self, paths: list[str]) -> Iterator[Chunk]:
        """The rows of files that are one each."""
        filesystem = sources.locate(self.source.path)[0]
        start = 0
        with readable(paths[0] if len(paths) == 1 else f"one of {len(paths)} files in {self.root}", self.kind):
            for table in folders.tables(filesystem, self.root, paths, self.kind, self.columns):
                yield Chunk(table, "", start)
                start += len(table)


@dataclass(frozen=True)
class Given:
    """Rows that are no source of files: JSON lines of a stream, or a JSON file, which is read at once."""

    name: str
    columns: tuple[str, ...]
    found: Iterable[list[dict[str, Any]]]
    content: str | None = None

    def chunks(self) -> Iterator[Chunk]:
        start = 0
        with readable(self.name, "JSON"):
            for rows in self.found:
                yield Chunk(_table(rows, ()), self.name, start)
                start += len(rows)


def opened(path: str, stream: BinaryIO | None = None) -> Rows | Given:
    """The rows at `path`: a file, a folder or a pattern, or the JSON lines of `stream` for `-`.

    Raises DataError when there are none or they cannot be read.
    """
    with _without_spec():
        if path == STREAM:
            assert stream is not None
            return _streamed(stream)
        if path.lower().endswith(".json"):
            return _json(Path(path))
        return of_source(path)


def of_source(path: str) -> Rows:
    """The rows of files. Raises DataError."""
    with _without_spec():
        kind = format_of(path) or _kind_of(path)
        if not kind:
            raise DataError(f"{sources.shown(path)} is of no known kind", expected=KINDS)
        source = Source(path=path, format=kind)  # type: ignore[arg-type]
        files = sources.listing(source, needs_classes=False)
        columns = tuple(sources.column_names(source, files))
        if len(set(columns)) < len(columns):
            raise DataError(f"{files[0].path} names two columns alike", expected="a name of its own for each")
        filesystem, inner = sources.locate(path)
        root = sources.root_of(filesystem, inner)
        if kind in folders.CONTENT and not folders.has_classes(root, [file.path for file in files]):
            columns = tuple(name for name in columns if name != folders.LABEL)
        return Rows(source, tuple(files), columns, root)


def _kind_of(path: str) -> str:
    try:
        return sources.kind_of(path)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"{sources.shown(path)} cannot be read: {reason(error)}") from None


def _tables(filesystem: pafs.FileSystem, path: str, kind: str, groups: list[int] | None) -> Iterator[pa.Table]:
    if kind != "jsonl":
        # Of each file its own columns, also where others have none of that name.
        yield from FORMATS[kind].tables(filesystem, path, groups, FORMATS[kind].names(filesystem, path))
        return
    known: dict[str, None] = {}
    with filesystem.open_input_stream(path) as stream:
        for rows in _chunked(objects(io.BufferedReader(stream)), CHUNK_ROWS):
            table = _table(rows, known)
            known |= dict.fromkeys(table.column_names)
            yield table


def _table(rows: list[dict[str, Any]], known: Iterable[str]) -> pa.Table:
    names = dict.fromkeys([*known, *(name for row in rows for name in row)])
    return pa.table({name: array([row.get(name) for row in rows]) for name in names})


def _chunked(found: Iterator[dict[str, Any]], rows: int) -> Iterator[list[dict[str, Any]]]:
    while some := list(islice(found, rows)):
        yield some


def _streamed(stream: BinaryIO) -> Given:
    chunks = _chunked(objects(stream), STREAM_ROWS)
    with readable("standard input", "JSON"):
        first = next(chunks, None)
    if first is None:
        raise DataError("standard input holds no row", expected="JSON lines")
    return Given("standard input", _names(first), _with_first(first, chunks))


def _with_first(first: list[dict[str, Any]], rest: Iterator[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    yield first
    yield from rest


def _json(path: Path) -> Given:
    """Of a JSON file: a list of objects, or an object of columns."""
    if not path.is_file():
        raise DataError(f"there is no file {path}", remedy="correct the path")
    with readable(str(path), "JSON"):
        document = json.loads(path.read_bytes())
    if isinstance(document, dict) and all(isinstance(values, list) for values in document.values()):
        if len({len(values) for values in document.values()}) > 1:
            raise DataError(f"the columns of {path} differ in length", expected="as many values in each")
        document = [dict(zip(document, row, strict=True)) for row in zip(*document.values(), strict=True)]
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document) or not document:
        raise DataError(f"{path} holds no rows", expected="a list of objects, or an object of lists")
    return Given(str(path), _names(document), list(_chunked(iter(document), CHUNK_ROWS)))


def _names(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple({name: None for row in rows for name in row})


@contextmanager
def _without_spec() -> Iterator[None]:
    """What is read here has no spec whose keys could be corrected."""
    try:
        yield
    except DataError as error:
        remedy = "correct the path, or the file" if "data.source" in error.remedy else error.remedy
        raise DataError(error.happened, expected=error.expected, remedy=remedy) from None
