"""The formats a source can have, each read in pieces, without guessing a type from the first rows.

What a value means is decided by the spec, row by row. A guess would depend on how rows are divided into files, and one
word among a million numbers would fail the file instead of the row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

import orjson
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from tidegate.errors import DataError

Piece = tuple[str, list[int] | None]
"""A file's path, and which part of it: None is the whole file."""
CHUNK_ROWS = 8192


class Format(Protocol):
    def names(self, filesystem: pafs.FileSystem, path: str) -> list[str]:
        """The columns of a file."""

    def parts(self, filesystem: pafs.FileSystem, path: str) -> list[list[int] | None]:
        """How a large file can be divided."""

    def tables(
        self, filesystem: pafs.FileSystem, path: str, part: list[int] | None, columns: list[str]
    ) -> Iterator[pa.Table]:
        """The rows of a part, in order; of `columns`, those the file has."""


@contextmanager
def readable(path: str, kind: str) -> Iterator[None]:
    """Turns what goes wrong while reading a file into a DataError."""
    try:
        yield
    except PermissionError:
        raise DataError(f"{path} may not be read by this user", remedy="give the user the right to read it") from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(
            f"{path} is no readable {kind}: {reason(error)}", remedy="correct the file or data.source.format"
        ) from None


def reason(error: Exception) -> str:
    """What an error says, in one short line. Of bytes that are no text, Arrow would show what it took them for."""
    said, mark, _ = str(error).partition("\ufffd")
    printable = "".join(sign if sign.isprintable() else " " for sign in said)
    return " ".join(printable.split())[:300] + (" (bytes that are no UTF-8 text)" if mark else "")


class Parquet:
    """Divided by row groups."""

    def names(self, filesystem: pafs.FileSystem, path: str) -> list[str]:
        return list(pq.read_schema(path, filesystem=filesystem).names)

    def parts(self, filesystem: pafs.FileSystem, path: str) -> list[list[int] | None]:
        with filesystem.open_input_file(path) as file:
            return [[group] for group in range(pq.ParquetFile(file).num_row_groups)] or [None]

    def tables(
        self, filesystem: pafs.FileSystem, path: str, part: list[int] | None, columns: list[str]
    ) -> Iterator[pa.Table]:
        with filesystem.open_input_file(path) as file:
            parquet = pq.ParquetFile(file)
            names = [name for name in columns if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(CHUNK_ROWS, row_groups=part, columns=names):
                yield pa.Table.from_batches([batch])


class Csv:
    """Every value is text here; an empty field that is not quoted is a missing value."""

    def names(self, filesystem: pafs.FileSystem, path: str) -> list[str]:
        with filesystem.open_input_stream(path) as stream, pacsv.open_csv(stream) as reader:
            return list(reader.schema.names)

    def parts(self, filesystem: pafs.FileSystem, path: str) -> list[list[int] | None]:
        return [None]

    def tables(
        self, filesystem: pafs.FileSystem, path: str, part: list[int] | None, columns: list[str]
    ) -> Iterator[pa.Table]:
        present = self.names(filesystem, path)
        names = [name for name in columns if name in present]
        convert = pacsv.ConvertOptions(
            include_columns=names,
            column_types={name: pa.string() for name in names},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        parse = pacsv.ParseOptions(newlines_in_values=True)
        with (
            filesystem.open_input_stream(path) as stream,
            pacsv.open_csv(stream, parse_options=parse, convert_options=convert) as reader,
        ):
            for batch in reader:
                yield pa.Table.from_batches([batch])


class JsonLines:
    """One object a line. Lines that lack a key have no value there."""

    def names(self, filesystem: pafs.FileSystem, path: str) -> list[str]:
        with filesystem.open_input_stream(path) as stream:
            return list({name: None for row in islice(objects(io.BufferedReader(stream)), CHUNK_ROWS) for name in row})

    def parts(self, filesystem: pafs.FileSystem, path: str) -> list[list[int] | None]:
        return [None]

    def tables(
        self, filesystem: pafs.FileSystem, path: str, part: list[int] | None, columns: list[str]
    ) -> Iterator[pa.Table]:
        with filesystem.open_input_stream(path) as stream:
            found = objects(io.BufferedReader(stream))
            while rows := list(islice(found, CHUNK_ROWS)):
                yield pa.table({name: array([row.get(name) for row in rows]) for name in columns})


FORMATS: dict[str, Format] = {"parquet": Parquet(), "csv": Csv(), "jsonl": JsonLines()}


def objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines. Raises ValueError for a line that holds none."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = orjson.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} holds no object: {str(row)[:40]}")
            yield row


def array(values: list[Any]) -> pa.Array:
    """An Arrow array. Where the types differ, the values become text; those that are no list among lists, missing."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        depths = [_depth(value) for value in values]
        depth = max(0, *depths)
        return pa.array([as_text(value) if at == depth else None for value, at in zip(values, depths, strict=True)])


def _depth(value: Any) -> int:
    """How deep lists are nested; -1 when unevenly."""
    if not isinstance(value, list):
        return 0
    inner = {_depth(item) for item in value if item is not None} or {0}
    return -1 if len(inner) > 1 or -1 in inner else 1 + inner.pop()


def as_text(value: Any) -> Any:
    """A value of JSON as text, lists item by item; None stays."""
    if isinstance(value, list):
        return [as_text(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if value is None or isinstance(value, str) else json.dumps(value)
