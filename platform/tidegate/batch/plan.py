"""Which rows make which part. It follows from the source's files and the options alone, never from the workers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tidegate.data import sources
from tidegate.data.formats import readable
from tidegate.data.sources import SourceFile
from tidegate.rows import Chunk, Rows
from tidegate.table_writer import unified

FORMAT = 1
PART_BYTES = 64 * 2**20
"""Of the source, about so much at most is in a part, whatever its rows."""
MOST_CUTS = 32
"""Into so many parts a file is cut at most that has to be read from its beginning for each of them."""


class Counted(NamedTuple):
    """A file and how many rows it has; those of a Parquet file by row group."""

    path: str
    size: int
    rows: int
    groups: tuple[int, ...] = ()


class Slice(NamedTuple):
    """Rows `start` to `start + rows` of a file, found by reading `groups` (None: the file) from row `first` on.

    Where each row is a file, `path` is empty and the rows are those of the list of files.
    """

    path: str
    start: int
    rows: int
    first: int = 0
    groups: list[int] | None = None


@dataclass(frozen=True)
class Part:
    """What is computed by one worker and written as one file."""

    name: str
    slices: tuple[Slice, ...]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.slices)


def counted(rows: Rows, file: SourceFile) -> tuple[Counted, pa.Schema]:
    """The rows of a file and the types of its columns. Raises DataError when it cannot be read."""
    with readable(file.path, rows.kind):
        if rows.kind == "parquet":
            filesystem = sources.locate(rows.source.path)[0]
            with filesystem.open_input_file(file.path) as opened:
                parquet = pq.ParquetFile(opened)
                groups = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
                return Counted(file.path, file.size, sum(groups), tuple(groups)), parquet.schema_arrow
        found, schema = 0, pa.schema([])
        for chunk in rows.of_file(file.path):
            found += len(chunk.table)
            schema = unified(schema, chunk.table.schema)
        return Counted(file.path, file.size, found), schema


def parts(files: Sequence[Counted], part_rows: int, mark: str, part_bytes: int = PART_BYTES) -> list[Part]:
    """The parts of files, in their order."""
    grouped: list[list[Slice]] = []
    rows, size = 0, 0.0
    for piece, piece_bytes in _slices(files, part_rows, part_bytes):
        if not grouped or rows + piece.rows > part_rows or size + piece_bytes > part_bytes:
            grouped.append([])
            rows, size = 0, 0.0
        grouped[-1].append(piece)
        rows, size = rows + piece.rows, size + piece_bytes
    return [Part(_name(index, mark), tuple(slices)) for index, slices in enumerate(grouped)]


def parts_of_contents(sizes: Sequence[int], part_rows: int, mark: str, part_bytes: int = PART_BYTES) -> list[Part]:
    """The parts of files that are one row each."""
    starts: list[int] = []
    size = float(part_bytes)
    for index, own in enumerate(sizes):
        if not starts or index - starts[-1] == part_rows or size + own > part_bytes:
            starts.append(index)
            size = 0.0
        size += own
    ends = [*starts[1:], len(sizes)][: len(starts)]
    bounds = enumerate(zip(starts, ends, strict=True))
    return [Part(_name(index, mark), (Slice("", start, end - start),)) for index, (start, end) in bounds]


def _slices(files: Sequence[Counted], part_rows: int, part_bytes: int) -> Iterator[tuple[Slice, float]]:
    for file in files:
        starts = [0, *accumulate(file.groups)]
        readings: list[tuple[list[int] | None, int, int]] = [
            ([group], starts[group], rows) for group, rows in enumerate(file.groups)
        ]
        row_bytes = file.size / max(1, file.rows)
        for groups, first, rows in readings or [(None, 0, file.rows)]:
            most = max(1, min(part_rows, int(part_bytes / max(1.0, row_bytes))), -(-rows // MOST_CUTS))
            for start in range(first, first + rows, most):
                here = min(most, first + rows - start)
                yield Slice(file.path, start, here, first, groups), here * row_bytes


def _name(index: int, mark: str) -> str:
    # The mark keeps the parts of another plan from being taken for this one's.
    return f"part-{index:06d}-{mark[:8]}.parquet"


def between(chunks: Iterator[Chunk], start: int, stop: int) -> Iterator[Chunk]:
    """Of the chunks of a file, the rows from `start` to `stop`."""
    for chunk in chunks:
        end = chunk.start + len(chunk.table)
        low, high = max(start, chunk.start), min(stop, end)
        if low < high:
            yield chunk._replace(table=chunk.table.slice(low - chunk.start, high - low), start=low)
        if end >= stop:
            return


def fingerprint(files: Sequence[SourceFile], options: dict[str, Any]) -> str:
    """sha256 of the source's files and all that decides the answers."""
    named = [[file.path, file.size, file.modified_ns, file.version] for file in files]
    document = {"format": FORMAT, "files": named, **options, "part_bytes": PART_BYTES, "cuts": MOST_CUTS}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def to_json(planned: Sequence[Part]) -> list[Any]:
    return [[part.name, [list(piece) for piece in part.slices]] for part in planned]


def from_json(document: Sequence[Any]) -> list[Part]:
    return [Part(name, tuple(Slice(*piece) for piece in slices)) for name, slices in document]
