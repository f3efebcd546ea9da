"""Rows of different sizes are asked by size and answered in their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tidegate.content import objects
from tidegate.model_inputs import InputReader
from tidegate.ragged import Columns, alike, is_ragged
from tidegate.signature import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP64", (-1, -1)),), (TensorSpec("y", "FP64", (-1,)),))


def reading(values: Any) -> tuple[dict[str, Any], list[str | None]]:
    table = pa.table({"x": values})
    inputs, found = InputReader(SIGNATURE, table.column_names, "rows.parquet").read(table)
    return inputs, found.tolist()


@given(st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=4), min_size=1, max_size=20))
def test_every_row_is_asked_once_with_its_like(rows: list[list[float]]) -> None:
    sizes = []

    def ask(inputs: Columns) -> dict[str, Any]:
        sizes.append(inputs["x"].shape)
        return {"y": inputs["x"].sum(axis=1) + inputs["plus"]}

    plus = np.arange(len(rows))
    found = alike(ask)({"x": objects([np.asarray(row) for row in rows]), "plus": plus})
    assert np.allclose(found["y"], [sum(row) + place for place, row in enumerate(rows)])
    assert sorted(size for count, size in sizes for _ in range(count)) == sorted(map(len, rows))
    assert len(sizes) == len({len(row) for row in rows})


def test_rows_alike_are_one_array() -> None:
    inputs, found = reading([[1.0, 2.0], [3.0, 4.0]])
    assert inputs["x"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert found == [None, None]


def test_lists_of_any_length_are_read_row_by_row() -> None:
    inputs, found = reading([[1.0, 2.0], [3.0], [4.0, 5.0]])
    assert found == [None] * 3
    assert is_ragged(inputs["x"])
    assert [row.tolist() for row in inputs["x"]] == [[1.0, 2.0], [3.0], [4.0, 5.0]]


def test_a_row_that_is_no_array_is_named() -> None:
    inputs, found = reading([[1.0, 2.0], [3.0], None, [4.0, None]])
    assert found[:2] == [None, None]
    assert found[2] == "x: the value is missing"
    assert found[3] is not None
    assert len(inputs["x"]) == 4
    assert all(problem is not None for problem in reading([None, None])[1])


def test_texts_are_not_ragged() -> None:
    texts = np.empty(2, dtype=object)
    texts[:] = ["a", "bc"]
    assert not is_ragged(texts)
