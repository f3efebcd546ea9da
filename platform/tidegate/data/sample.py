"""A bounded sample of a source: rows from all over it, for a look at what its columns hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa

from tidegate.data import folders, sources
from tidegate.data.canonical import column_of
from tidegate.data.formats import Piece, array
from tidegate.data.sources import SourceFile
from tidegate.errors import DataError
from tidegate.spec.data import Source

ROWS = 10_000
PIECES = 16
"""Of a source of many files or row groups, so many are looked into."""
READ_BYTES = 64 * 2**20
CONTENTS = 400
"""Of images and texts in files of their own, so many are opened."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """Some rows of a source, or all of them."""

    columns: dict[str, pa.Array]
    rows: int
    """Of the whole source; when the sample is not the whole, about so many."""
    is_whole: bool
    files: int
    known: dict[str, pa.Array] = field(default_factory=dict)
    """Columns that are known for every row of the source, such as the classes that folders name."""

    @property
    def size(self) -> int:
        """How many rows were looked at."""
        return len(next(iter(self.columns.values())))

    def everywhere(self, name: str) -> pa.Array:
        """The values of a column in as many rows as are known."""
        return self.known.get(name, self.columns[name])


def take(source: Source) -> Sample:
    """A sample of a source. Raises DataError when it cannot be read or has no row."""
    files = sources.listing(source)
    sample = _of_files(source, files) if source.resolved_format() in folders.CONTENT else _of_tables(source, files)
    if not sample.size:
        remedy = "give it some, or name another source"
        raise DataError(f"the source {sources.shown(source.path)} has no rows", remedy=remedy)
    return sample


def _of_files(source: Source, files: list[SourceFile]) -> Sample:
    names = sources.column_names(source, files)
    pieces: list[Piece] = [(file.path, None) for file in _spread(files, CONTENTS)]
    tables = list(sources.Reader(source, names).tables(pieces))
    known = {folders.LABEL: pa.array([folders.label(file.path) for file in files])}
    return Sample(_joined(tables, names), len(files), len(pieces) == len(files), len(files), known)


def _of_tables(source: Source, files: list[SourceFile]) -> Sample:
    names = list(dict.fromkeys(sources.column_names(source, files)))
    reader, filesystem = sources.Reader(source, names), sources.locate(source.path)[0]
    some = _spread(files, PIECES)
    pieces = [piece for file in some for piece in sources.pieces_of(filesystem, file, source.resolved_format())]
    chosen = _spread(pieces, PIECES)
    limit = ROWS // len(chosen)
    tables, rows, is_whole = [], 0.0, len(some) == len(files) and len(chosen) == len(pieces)
    for piece, size in chosen:
        found, is_read = _head(reader.tables([piece]), READ_BYTES // len(chosen))
        count = sum(len(table) for table in found)
        share = 1.0 if is_read else min(1.0, sum(table.nbytes for table in found) / max(1, size))
        rows += count / max(share, 1e-9)
        is_whole = is_whole and is_read and count <= limit
        tables += _thinned(found, limit)
    looked, total = sum(size for _, size in chosen), sum(file.size for file in files)
    return Sample(_joined(tables, names), round(rows * total / max(1, looked)), is_whole, len(files))


def _head(tables: Iterator[pa.Table], limit: int) -> tuple[list[pa.Table], bool]:
    """The first tables, up to about `limit` bytes; and whether they are all."""
    found: list[pa.Table] = []
    size = 0
    for table in tables:
        if size > limit:
            return found, False
        found.append(table)
        size += table.nbytes
    return found, True


def _thinned(tables: list[pa.Table], limit: int) -> list[pa.Table]:
    """At most `limit` rows, evenly from all of them: sources are often sorted."""
    count = sum(len(table) for table in tables)
    if count <= limit:
        return tables
    chosen, start, thinned = [place * count // limit for place in range(limit)], 0, []
    for table in tables:
        stop = start + len(table)
        thinned.append(table.take([place - start for place in chosen if start <= place < stop]))
        start = stop
    return thinned


def _joined(tables: list[pa.Table], names: Sequence[str]) -> dict[str, pa.Array]:
    """One array a column; where types differ from file to file, as JSON lines with different types have them."""
    columns = {}
    for name in names:
        chunks = [column_of(table, name) for table in tables]
        if len({chunk.type for chunk in chunks}) == 1:
            columns[name] = pa.concat_arrays(chunks)
        else:
            columns[name] = array([value for chunk in chunks for value in chunk.to_pylist()])
    return columns


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly from all of them."""
    if len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]
