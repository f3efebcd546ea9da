"""Tables written chunk by chunk: what is read again, and that a file is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tidegate import tables
from tidegate.errors import DataError
from tidegate.table_writer import writing

CHUNKS = [
    [{"a": 1, "b": None, "c": [1]}],
    [{"a": 2.5, "b": "x", "c": []}, {"a": None, "b": "y", "c": None}],
    [{"a": 3, "b": "z", "c": [2, 3], "d": True}],
]


def write(path: Path, chunks: list[list[dict[str, Any]]]) -> None:
    with writing(path) as file:
        for rows in chunks:
            file.write(pa.Table.from_pylist(rows))


def test_parquet_takes_types_that_widen_on_the_way(tmp_path: Path) -> None:
    write(tmp_path / "out.parquet", CHUNKS)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.field("a").type == pa.float64()
    assert found.schema.field("b").type == pa.string()
    assert found.to_pylist() == [{"d": None, **row} for rows in CHUNKS for row in rows]
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_types_that_nothing_holds_become_text(tmp_path: Path) -> None:
    write(tmp_path / "out.parquet", [[{"a": 1}], [{"a": "x"}], [{"a": {"b": [1]}}]])
    assert pq.read_table(tmp_path / "out.parquet").column("a").to_pylist() == ["1", "x", '{"b":[1]}']


def test_csv_has_one_header_and_lists_as_json(tmp_path: Path) -> None:
    write(tmp_path / "out.csv", CHUNKS[:2])
    assert (tmp_path / "out.csv").read_text() == '"a","b","c"\n1,,"[1]"\n2.5,"x","[]"\n,"y",\n'
    with pytest.raises(DataError, match="the column d first comes after other rows"):
        write(tmp_path / "out.csv", CHUNKS)
    assert (tmp_path / "out.csv").read_text().count("\n") == 4


def test_json_lines_hold_no_nan(tmp_path: Path) -> None:
    write(tmp_path / "out.jsonl", [[{"a": float("nan"), "b": "é"}]])
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"a": None, "b": "é"}


def test_a_file_comes_into_its_place_at_once(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("of yesterday")
    with writing(tmp_path / "out.csv") as file:
        file.write(pa.Table.from_pylist(CHUNKS[0]))
        (part,) = (path for path in tmp_path.iterdir() if path.name != "out.csv")
        written = part.stat().st_ino
        assert (tmp_path / "out.csv").read_text() == "of yesterday"
    assert (tmp_path / "out.csv").stat().st_ino == written


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.jsonl"])
def test_a_file_is_there_when_all_of_it_is(tmp_path: Path, name: str) -> None:
    def broken() -> None:
        with writing(tmp_path / name) as file:
            file.write(pa.Table.from_pylist(CHUNKS[0]))
            assert not (tmp_path / name).exists()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_answers_get_columns_that_are_free() -> None:
    taken = ["predicted_a", "predicted_a_2", "predicted_a_4"]
    assert tables.answer_names(taken, ["a", "b", "a_3"]) == {
        "a": "predicted_a_3",
        "b": "predicted_b",
        "a_3": "predicted_a_3_2",
    }


def test_outputs_of_any_shape_are_columns() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert tables.arrow(values).to_pylist() == values.tolist()
    assert tables.arrow(values[:0]).to_pylist() == []
    assert tables.arrow(np.array(["a", "b"], dtype=object)).to_pylist() == ["a", "b"]
