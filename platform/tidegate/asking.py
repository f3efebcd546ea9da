"""The rows of a file, asked of an endpoint: each chunk comes back with its answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import pyarrow as pa

from tidegate import refused_rows, tables
from tidegate.client import Client
from tidegate.errors import DataError, RequestError
from tidegate.model_inputs import InputReader
from tidegate.ragged import alike
from tidegate.rows import Chunk, Given, Rows
from tidegate.tensors import Array
from tidegate.transforms.base import fits

CHUNK_ROWS = 2048
AT_ONCE = 4
"""Chunks under way at a time: an endpoint has several replicas, and reading and writing go on meanwhile."""


class Asking:
    """`outputs` are the columns of the answers, by output."""

    def __init__(self, client: Client, endpoint: str, rows: Rows | Given, reader: InputReader) -> None:
        self._rows, self._reader = rows, reader
        known = client.metadata(endpoint).signature
        self._ask = alike(lambda inputs: client.predict(endpoint, inputs))
        kept = [name for name in rows.columns if name != rows.content]
        self.outputs = tables.answer_names(kept, [spec.name for spec in known.outputs])

    def renamed(self) -> list[str]:
        """What to say of outputs whose column has another name than usual."""
        return [
            f"the answers of {output} are in the column {name}: there is a column {tables.PREFIX}{output} already"
            for output, name in self.outputs.items()
            if name != f"{tables.PREFIX}{output}"
        ]

    def answered(self, rows: int | None = None) -> Iterator[pa.Table]:
        """All rows, or the first of them, with the answers. Raises DataError or RequestError, which name the row."""
        chunks = self._chunks() if rows is None else _first(self._chunks(), rows)
        under_way: deque[Future[pa.Table]] = deque()
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="predict") as pool:
            try:
                for chunk in chunks:
                    under_way.append(pool.submit(self._answer, chunk))
                    if len(under_way) == AT_ONCE:
                        yield under_way.popleft().result()
                while under_way:
                    yield under_way.popleft().result()
            finally:
                for future in under_way:
                    future.cancel()

    def _chunks(self) -> Iterator[Chunk]:
        rows = min(CHUNK_ROWS, self._reader.rows_at_once)
        return (part for chunk in self._rows.chunks() for part in chunk.parts(rows))

    def _answer(self, chunk: Chunk) -> pa.Table:
        inputs, found = self._reader.read(chunk.table)
        wrong = next((row for row, is_fit in enumerate(fits(found)) if not is_fit), None)
        if wrong is not None:
            raise DataError(f"{chunk.place(wrong)}: {found[wrong]}", remedy="correct, fill or leave out such rows")
        try:
            answers = self._ask(inputs)
        except RequestError as error:
            raise self._named(chunk, inputs, error) from error
        table = chunk.table.drop_columns([self._rows.content]) if self._rows.content else chunk.table
        return tables.with_answers(table, answers, self._names(table, answers))

    def _names(self, table: pa.Table, answers: dict[str, Array]) -> dict[str, str]:
        # A later file may have columns that the first has not, and an endpoint may move to another version.
        unknown = [name for name in answers if name not in self.outputs]
        clash = [name for name in self.outputs.values() if name in table.column_names]
        if unknown or clash:
            raise DataError(
                f"{', '.join(unknown or clash)} came up among the {'answers' if unknown else 'columns'} on the way",
                remedy="repeat the command" if unknown else "ask about those files by themselves",
            )
        return self.outputs

    def _named(self, chunk: Chunk, inputs: dict[str, Array], error: RequestError) -> RequestError:
        """The refusal of the first row that is refused by itself."""
        start = 0
        for rows, outcome in refused_rows.answered(self._ask, inputs):
            if isinstance(outcome, RequestError):
                return RequestError(
                    f"{chunk.place(start)}: {outcome.happened}", expected=outcome.expected, remedy=outcome.remedy
                )
            start += rows
        return error


def _first(chunks: Iterator[Chunk], rows: int) -> Iterator[Chunk]:
    for chunk in islice(chunks, rows):
        yield chunk._replace(table=chunk.table.slice(0, rows))
        rows -= len(chunk.table)
        if rows <= 0:
            return
