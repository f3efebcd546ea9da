"""One part of a batch: its rows read, asked of the model as an endpoint would, and written, whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tidegate import protocol, refused_rows, tables
from tidegate.batch.plan import Part, between
from tidegate.errors import ArtifactError, DataError, RequestError, StorageError, TidegateError
from tidegate.model_inputs import InputReader
from tidegate.ragged import alike
from tidegate.rows import Chunk, Rows
from tidegate.signature import DATATYPES, Signature
from tidegate.table_writer import fitted
from tidegate.tensors import Array
from tidegate.transforms.base import fits

if TYPE_CHECKING:
    from tidegate.loaded import Model

GROUP_ROWS = 8192
"""Rows of a row group that is written."""
PLAN = "plan.json"
T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """What all parts of a batch have in common. May be pickled."""

    folder: str
    model: str
    path: str
    digest: str
    signature: Signature
    rows: Rows
    schema: bytes
    """Of what is written, as Arrow serialises it."""
    outputs: dict[str, str]
    """The columns of the answers, by output."""
    reason: str
    """The column that says why a row has no answers; empty where such rows end the run."""
    batch_rows: int
    white: float
    device: Literal["cpu", "cuda"]


class Answered(NamedTuple):
    """Some rows' answers: `rows` says which of all, the others were refused as `reasons` say."""

    answers: dict[str, Array]
    good: Array
    reasons: Array


class PartWriter:
    """Computes and writes parts. The model is loaded for the first one."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._schema = pa.ipc.read_schema(pa.py_buffer(work.schema))

    @cached_property
    def model(self) -> Model:
        # Imported here: the process that only plans needs no torch.
        from tidegate.artifact import load

        return load(Path(self._work.path), self._work.digest, self._work.device)

    @cached_property
    def _reader(self) -> InputReader:
        from tidegate.loaded import Trained
        from tidegate.transforms.image import ImageTransform

        white = {spec.name: self._work.white for spec in self._work.signature.inputs}
        if isinstance(self.model, Trained):
            trained = self.model.columns.transforms
            white |= {name: own.max_value for name, own in trained.items() if isinstance(own, ImageTransform)}
        rows = self._work.rows
        return InputReader(self._work.signature, rows.columns, rows.source.path, white)

    def write(self, part: Part, contents: list[str]) -> dict[str, Any]:
        """Write a part; its name, rows and how many were refused. `contents` are its files, where each is a row."""
        folder = Path(self._work.folder)
        if not (folder / PLAN).is_file():
            raise StorageError(
                f"{folder} is not the same folder on the node of this worker", remedy="name one on shared storage"
            )
        own = folder / f".{part.name}.{secrets.token_hex(4)}.partial"
        rows = refused = 0
        try:
            with pq.ParquetWriter(own, self._schema, write_page_checksum=True) as writer:
                for table, num_refused in self._groups(part, contents):
                    writer.write_table(table)
                    rows, refused = rows + len(table), refused + num_refused
            if rows != part.rows:
                raise DataError(
                    f"the source has {rows} rows where {part.rows} were counted for {part.name}",
                    remedy="it changed meanwhile: name another folder for its answers",
                )
            os.replace(own, folder / part.name)
        finally:
            own.unlink(missing_ok=True)
        return {"name": part.name, "rows": rows, "refused": refused}

    def _groups(self, part: Part, contents: list[str]) -> Iterator[tuple[pa.Table, int]]:
        """Tables to write, and how many rows of each were refused."""
        held: list[pa.Table] = []
        refused = 0
        for chunk, inputs, found in ahead(self._read(part, contents)):
            answered = self._answered(chunk, inputs, found)
            held.append(self._table(chunk, answered))
            refused += int((~answered.good).sum())
            if sum(map(len, held)) >= GROUP_ROWS:
                yield pa.concat_tables(held), refused
                held, refused = [], 0
        if held:
            yield pa.concat_tables(held), refused

    def _read(self, part: Part, contents: list[str]) -> Iterator[tuple[Chunk, dict[str, Array], Array]]:
        # Whole passes of the model: only the last of a chunk is smaller.
        most = max(1, self._reader.rows_at_once // self._work.batch_rows) * self._work.batch_rows
        for chunk in self._chunks(part, contents):
            for some in chunk.parts(most):
                yield (some, *self._reader.read(some.table))

    def _chunks(self, part: Part, contents: list[str]) -> Iterator[Chunk]:
        rows = self._work.rows
        if rows.content:
            yield from rows.contents(contents)
            return
        for piece in part.slices:
            chunks = rows.of_file(piece.path, piece.groups, piece.first)
            yield from between(chunks, piece.start, piece.start + piece.rows)

    def _answered(self, chunk: Chunk, inputs: dict[str, Array], found: Array) -> Answered:
        reasons = found.copy()
        self._stop_at(chunk, reasons)
        places = np.flatnonzero(fits(reasons))
        answers: list[dict[str, Array]] = []
        for start in range(0, len(places), self._work.batch_rows):
            some = places[start : start + self._work.batch_rows]
            for rows, outcome in self._asked(chunk, some, inputs):
                if isinstance(outcome, RequestError):
                    reasons[some[0]] = str(outcome)
                    self._stop_at(chunk, reasons)
                else:
                    answers.append(outcome)
                some = some[rows:]
        names = list(self._work.outputs)
        joined = {name: np.concatenate([part[name] for part in answers]) for name in names} if answers else {}
        return Answered(joined, fits(reasons), reasons)

    def _asked(
        self, chunk: Chunk, places: Array, inputs: dict[str, Array]
    ) -> Iterator[tuple[int, dict[str, Array] | RequestError]]:
        try:
            yield from refused_rows.answered(alike(self._ask), {name: array[places] for name, array in inputs.items()})
        except TidegateError:
            raise
        except Exception as error:
            rows = f"{chunk.place(int(places[0]))} to {chunk.place(int(places[-1]))}"
            raise ArtifactError(f"the model failed at {rows}: {type(error).__name__}: {error}") from error

    def _ask(self, inputs: refused_rows.Arrays) -> dict[str, Array]:
        """As an endpoint does: what it would refuse is refused, in its words."""
        signature = self._work.signature
        body = protocol.encode_request(inputs, signature, as_json=False)
        request = protocol.parse_request(
            body.content, signature, max_rows=self._work.batch_rows, header_length=body.header_length
        )
        return protocol.checked_outputs(self.model.predict(request.inputs), signature, request)

    def _stop_at(self, chunk: Chunk, reasons: Array) -> None:
        if self._work.reason:
            return
        for row, reason in enumerate(reasons):
            if reason is not None:
                raise DataError(
                    f"{chunk.place(row)}: {reason}", remedy="correct or leave out such rows, or say --invalid skip"
                )

    def _table(self, chunk: Chunk, answered: Answered) -> pa.Table:
        content = self._work.rows.content
        table = chunk.table.drop_columns([content]) if content else chunk.table
        for output, name in self._work.outputs.items():
            table = table.append_column(name, _spread(answered, output, self._schema.field(name).type))
        if self._work.reason:
            table = table.append_column(self._work.reason, pa.array(answered.reasons.tolist(), pa.string()))
        return fitted(table, self._schema)


def _spread(answered: Answered, output: str, kind: pa.DataType) -> pa.Array:
    """The answers at the rows that have them, and nulls at the others."""
    if output not in answered.answers:
        return pa.nulls(len(answered.good), kind)
    column = tables.arrow(answered.answers[output]).cast(kind)
    if answered.good.all():
        return column
    places = np.cumsum(answered.good) - 1
    return column.take(pa.array(places, mask=~answered.good))


def column_type(datatype: str, shape: tuple[int, ...]) -> pa.DataType:
    """How an output of that signature is written."""
    kind = pa.string() if datatype == "BYTES" else pa.from_numpy_dtype(DATATYPES[datatype])
    for _ in shape[1:]:
        kind = pa.list_(kind)
    return kind


def is_whole(path: Path, rows: int) -> bool:
    """Whether a part is there with all its rows, each page of it as it was written."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return sum(map(len, file.iter_batches())) == rows
    except (OSError, pa.ArrowException):
        return False


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made while the one before is worked on."""
    nothing: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        coming = pool.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            coming = pool.submit(next, items, nothing)
            yield item
