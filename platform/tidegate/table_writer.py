"""Writes a table to a file chunk by chunk: CSV, Parquet or JSON lines. The file is there when all of it is, or not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tidegate.errors import DataError


class Writer(Protocol):
    def write(self, table: pa.Table) -> None:
        """Add rows. Columns of a chunk may differ in type from those before. Raises DataError where no type fits."""

    def close(self) -> None:
        """All rows have been given."""


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """A writer to a file of the kind that its ending names; when the block ends well, all is under that name."""
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    kinds: dict[str, Callable[[Path], Writer]] = {".parquet": Parquet, ".csv": Csv, ".jsonl": JsonLines}
    try:
        writer = kinds[path.suffix](part)
        try:
            yield writer
        finally:
            writer.close()
        part.replace(path)
    except OSError as error:
        if error.filename not in (None, str(part), str(path)):
            raise
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


class JsonLines:
    """One object a line."""

    def __init__(self, to: Path | IO[bytes]) -> None:
        self._is_ours = isinstance(to, Path)
        self._file: IO[bytes] = to.open("wb") if isinstance(to, Path) else to

    def write(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            self._file.write(orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE))
        if not self._is_ours:
            self._file.flush()

    def close(self) -> None:
        if self._is_ours:
            self._file.close()


class Csv:
    """Lists become JSON text: CSV has none."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._names: list[str] | None = None

    def write(self, table: pa.Table) -> None:
        if self._names is None:
            self._names = table.column_names
        elif set(table.column_names) - set(self._names):
            new = ", ".join(name for name in table.column_names if name not in self._names)
            raise DataError(f"the column {new} first comes after other rows", remedy="write .jsonl or .parquet")
        options = pa.csv.WriteOptions(include_header=self._file.tell() == 0)
        pa.csv.write_csv(_without_lists(_ordered(table, self._names)), self._file, options)

    def close(self) -> None:
        self._file.close()


class Parquet:
    """Where a later chunk needs wider types than those before, they are written again with them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        schema = unified(self._writer.schema, table.schema)
        if schema != self._writer.schema:
            self._widen(schema)
        self._writer.write_table(fitted(table, schema))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _widen(self, schema: pa.Schema) -> None:
        assert self._writer is not None
        self._writer.close()
        again = self._path.with_name(f"{self._path.name}.again")
        try:
            self._writer = pq.ParquetWriter(again, schema)
            with pq.ParquetFile(self._path) as written:
                for batch in written.iter_batches():
                    self._writer.write_table(fitted(pa.Table.from_batches([batch]), schema))
            # The writer goes on under the new name.
            again.replace(self._path)
        finally:
            again.unlink(missing_ok=True)


def unified(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """A schema that the columns of both fit: types that nothing else holds become text."""
    fields = {field.name: field for field in first}
    for field in second:
        known = fields.get(field.name)
        fields[field.name] = field if known is None else _wider(known, field)
    return pa.schema(list(fields.values()))


def _wider(known: pa.Field, field: pa.Field) -> pa.Field:
    if known.type == field.type:
        return known
    try:
        (wider,) = pa.unify_schemas([pa.schema([known]), pa.schema([field])], promote_options="permissive")
        return wider
    except pa.ArrowException:
        return pa.field(known.name, pa.string())


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns and types of a schema as `unified` makes it."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        columns.append(_cast(table.column(field.name), field.type))
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    try:
        return column.cast(kind)
    except pa.ArrowException:
        if not pa.types.is_string(kind):
            # A whole number of more digits than a float has.
            return column.cast(kind, safe=False)
    return pa.array(
        [value if value is None or isinstance(value, str) else _text(value) for value in column.to_pylist()]
    )


def _text(value: object) -> str:
    return orjson.dumps(value, default=str).decode()


def _ordered(table: pa.Table, names: list[str]) -> pa.Table:
    missing = [name for name in names if name not in table.column_names]
    for name in missing:
        table = table.append_column(name, pa.nulls(len(table)))
    return table.select(names)


def _without_lists(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            values = table.column(index).to_pylist()
            texts = [None if value is None else json.dumps(value, default=str) for value in values]
            table = table.set_column(index, field.name, pa.array(texts, pa.string()))
    return table
