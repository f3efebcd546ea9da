"""Series of any length: from lists to padded arrays, and the problem of each row that does not fit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.data.prepared import column_array
from tidegate.errors import RequestError
from tidegate.spec.data import SeriesInput
from tidegate.transforms.base import Array, length_key
from tidegate.transforms.columns import Columns, canonical
from tidegate.transforms.series import SeriesTransform

ONE = SeriesInput(type="series", max_length=4)
TWO = SeriesInput(type="series", max_length=3, channels=2)
PLAIN = SeriesInput(type="series", max_length=3, channels=2, scale="none")


def read(spec: SeriesInput, values: Any) -> tuple[Array, list[str | None]]:
    column, found = canonical(spec).read(values if isinstance(values, pa.Array) else pa.array(values))
    return column_array(column), found.tolist()


def fitted(spec: SeriesInput, values: Any, pieces: int = 1) -> SeriesTransform:
    reader = canonical(spec)
    parts = [reader.partial(part) for part in np.array_split(read(spec, values)[0], pieces)]
    return SeriesTransform("x", json.loads(json.dumps(reader.fit(parts))))


def test_steps_are_standardised_by_channel_and_padded_with_zeros() -> None:
    values = [[[1.0, 10.0], [3.0, 30.0]], [[5.0, 50.0]]]
    found = fitted(TWO, values).apply(read(TWO, values)[0])
    deviation = np.std([1.0, 3.0, 5.0])
    expected = [[(v - 3.0) / deviation, (10 * v - 30.0) / (10 * deviation)] for v in (1.0, 3.0, 5.0)]
    assert found["x"].reshape(2, 3, 2) == pytest.approx(
        np.array([[expected[0], expected[1], [0, 0]], [expected[2], [0, 0], [0, 0]]]), abs=1e-6
    )
    assert found["x"].dtype == np.float32
    assert found[length_key("x")].tolist() == [[2], [1]]


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=4), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_the_state_does_not_depend_on_how_rows_are_cut(values: list[list[float]], pieces: int) -> None:
    one, cut = fitted(ONE, values), fitted(ONE, values, pieces)
    assert one.shift == pytest.approx(cut.shift, rel=1e-9, abs=1e-9)
    flat = np.concatenate([np.asarray(row) for row in values])
    assert one.shift[0] == pytest.approx(flat.mean(), rel=1e-9, abs=1e-6)
    lengths = one.apply(read(ONE, values)[0])[length_key("x")]
    assert lengths.reshape(-1).tolist() == [len(row) for row in values]


@pytest.mark.parametrize(
    ("spec", "values", "found"),
    [
        (ONE, [[1.0], None, []], [None, "the series is missing or empty", "the series is missing or empty"]),
        (ONE, [[1.0] * 5, [1, 2]], ["the series has 5 steps, more than max_length 4", None]),
        (ONE, [[1.0, None]], ["the series holds a number that is missing or not finite"]),
        (ONE, [[float("inf")]], ["the series holds a number that is missing or not finite"]),
        (ONE, [[1e39]], ["a number is too large to use"]),
        (ONE, [["1", "b"]], ["the series holds something that is no number, or steps of different lengths"]),
        (ONE, [[[1.0], [2.0]]], [None]),
        (TWO, [[1.0, 2.0]], ["the series has the shape [2], not steps of 2 numbers"]),
        (TWO, [[[1.0, 2.0], [3.0]]], ["the series holds something that is no number, or steps of different lengths"]),
        (TWO, [[[1.0, 2.0, 3.0]]], ["the series has the shape [1, 3], not steps of 2 numbers"]),
        (ONE, ["no list"], ["the series is missing or empty"]),
    ],
)
def test_the_problem_of_each_series_that_does_not_fit(spec: SeriesInput, values: Any, found: list[str | None]) -> None:
    assert read(spec, values)[1] == found


def test_an_endpoint_takes_any_length_up_to_the_longest() -> None:
    series = fitted(PLAIN, [[[1.0, 2.0]]])
    assert series.tensor.shape == (-1, -1, 2)
    assert fitted(ONE, [[1.0]]).tensor.shape == (-1, -1)
    found = series.apply(np.array([[[1.0, 2.0], [3.0, 4.0]]]))
    assert found["x"].tolist() == [[1.0, 2.0, 3.0, 4.0, 0.0, 0.0]]
    with pytest.raises(RequestError, match="has 4 steps; expected at most 3"):
        series.apply(np.zeros((1, 4, 2)))
    with pytest.raises(RequestError, match="too large"):
        series.apply(np.full((1, 1, 2), 1e39))


@pytest.mark.parametrize("hole", [[[np.nan, 1.0]], [[np.nan, np.nan], [1.0, 1.0]], [[np.nan, np.nan]]])
def test_a_gap_is_no_end(hole: list[list[float]]) -> None:
    with pytest.raises(RequestError, match="holds NaN"):
        fitted(PLAIN, [[[1.0, 2.0]]]).apply(np.array([hole]))


def test_rows_may_be_filled_up_with_nan_without_a_difference() -> None:
    columns = Columns(
        {"x": {"type": "series", "max_length": 3, "channels": 2, "shift": [3.0, 30.0], "scale": [2.0, 5.0]}}
    )
    assert columns.any_length == {"x"}
    asked = [[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]]
    together = columns.apply({"x": np.array([asked[0] + [[np.nan, np.nan]], asked[1]])})
    for row, each in enumerate(asked):
        for name, array in columns.apply({"x": np.array([each])}).items():
            assert np.array_equal(array[0], together[name][row])


def test_an_example_is_as_long_as_can_be() -> None:
    assert fitted(TWO, [[[1.0, 10.0]]]).example(2).shape == (2, 3, 2)
    single = fitted(ONE, [[2.0, 4.0]])
    assert single.example(1).tolist() == [[3.0] * 4]
    assert single.apply(single.example(1))["x"].tolist() == [[0.0] * 4]
