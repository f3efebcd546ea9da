"""The formats of a source: values as they stand, whatever stands in the other rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.data import formats, sources
from tidegate.data.formats import FORMATS, readable
from tidegate.errors import DataError
from tidegate.spec.data import Source

LOCAL = pafs.LocalFileSystem()


def rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    kind = path.suffix[1:]
    with readable(str(path), kind):
        tables = list(FORMATS[kind].tables(LOCAL, str(path), None, columns))
    return [row for table in tables for row in table.to_pylist()]


def test_csv_values_are_text_and_empty_fields_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,x,y,note\n01,1.50,,"a\nb"\n1,NA,null,""\n')
    assert FORMATS["csv"].names(LOCAL, str(path)) == ["id", "x", "y", "note"]
    assert rows(path, ["id", "note", "x", "y", "z"]) == [
        {"id": "01", "note": "a\nb", "x": "1.50", "y": None},
        {"id": "1", "note": "", "x": "NA", "y": "null"},
    ]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, 2], [1, 2]),
        ([1, 2.5], [1.0, 2.5]),
        ([1, "a", None, True, 2.5, 3.0], ["1", "a", None, "true", "2.5", "3"]),
        ([[1, 2], 3, None, [4.5]], [["1", "2"], None, None, ["4.5"]]),
        ([[1, "a"], [2, 3]], [["1", "a"], ["2", "3"]]),
        ([[[1], [2]], [[3]], [4], "x", []], [[["1"], ["2"]], [["3"]], None, None, None]),
        ([10**30, 1], [str(10**30), "1"]),
        ([{"a": 1}, 1], ['{"a": 1}', "1"]),
        ([None, None], [None, None]),
    ],
)
def test_json_values_of_different_types(values: list[Any], found: list[Any]) -> None:
    assert formats.array(values).to_pylist() == found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)


@given(values=st.lists(json_values, max_size=6))
@settings(max_examples=500, deadline=None)
def test_any_json_values_become_a_column_of_as_many_rows(values: list[Any]) -> None:
    assert len(formats.array(values)) == len(values)


def test_json_lines_may_lack_keys_and_be_blank(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"b": "x", "a": null}\r\n  {"c": [1]}')
    assert FORMATS["jsonl"].names(LOCAL, str(path)) == ["a", "b", "c"]
    assert rows(path, ["a", "b"]) == [{"a": 1, "b": None}, {"a": None, "b": "x"}, {"a": None, "b": None}]


@pytest.mark.parametrize(
    ("line", "says"), [("{", "line 2: "), ("[1]", r"line 2 holds no object: \[1\]"), ("nan", "line 2")]
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=says):
        rows(path, ["a"])


lines = st.lists(json_values, max_size=4).map(lambda values: b"\n".join(json.dumps(value).encode() for value in values))


@given(data=st.binary(max_size=100) | lines)
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_another_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    for kind in FORMATS:
        path = tmp_path_factory.getbasetemp() / f"any.{kind}"
        path.write_bytes(data)
        if message := refusal(path):
            assert message.startswith(f"{path} is no readable {kind}: ")
            assert message.isprintable()


def refusal(path: Path) -> str:
    try:
        rows(path, ["a", "b"])
    except DataError as error:
        return str(error)
    return ""


def test_small_files_are_read_together_and_large_ones_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"a": list(range(1000))})
    for name in ("a", "b", "c", "d"):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=100 if name == "c" else 1000)
    files = sources.listing(Source(path=str(tmp_path), format="parquet"))
    assert [Path(file.path).name for file in files] == ["a.parquet", "b.parquet", "c.parquet", "d.parquet"]
    assert [len(unit) for unit in sources._units(LOCAL, files, "parquet")] == [4]
    monkeypatch.setattr(sources, "BLOCK_BYTES", (files[0].size + files[2].size) // 2)
    units = sources._units(LOCAL, files, "parquet")
    pieces = [(Path(path).name[0], part) for unit in units for path, part in unit]
    assert pieces == [("a", None), ("b", None), *[("c", [group]) for group in range(10)], ("d", None)]
    assert 4 <= len(units) <= 6
    read = [
        value
        for unit in units
        for path, part in unit
        for batch in FORMATS["parquet"].tables(LOCAL, path, part, ["a"])
        for value in batch.column("a").to_pylist()
    ]
    assert read == list(range(1000)) * 4
