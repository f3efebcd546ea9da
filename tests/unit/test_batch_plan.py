"""Which rows make which part: every row once, in order, whatever was done before and by whom."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import rows as rows_module
from tidegate.batch import plan
from tidegate.batch.part import is_whole
from tidegate.batch.plan import MOST_CUTS, Counted
from tidegate.data.sources import SourceFile
from tidegate.rows import Chunk, of_source

plain = st.integers(0, 500).map(lambda rows: ((), rows))
grouped = st.lists(st.integers(0, 200), max_size=5).map(lambda groups: (tuple(groups), sum(groups)))
files = st.lists(st.tuples(st.one_of(plain, grouped), st.integers(0, 10_000)), max_size=8).map(
    lambda found: [Counted(f"f{i}", size, rows, groups) for i, ((groups, rows), size) in enumerate(found)]
)


@given(files=files, part_rows=st.integers(1, 100), part_bytes=st.integers(1, 5000))
def test_every_row_is_in_one_part_and_in_order(files: list[Counted], part_rows: int, part_bytes: int) -> None:
    planned = plan.parts(files, part_rows, "a" * 64, part_bytes)
    found = [(s.path, s.start + row) for part in planned for s in part.slices for row in range(s.rows)]
    assert found == [(file.path, row) for file in files for row in range(file.rows)]
    assert [part.name for part in planned] == sorted({part.name for part in planned})
    assert all(part.rows > 0 for part in planned)


@given(files=files, part_rows=st.integers(1, 100))
def test_parts_keep_their_size_unless_a_file_would_be_read_too_often(files: list[Counted], part_rows: int) -> None:
    longest = max((max(file.groups, default=file.rows) for file in files), default=0)
    planned = plan.parts(files, part_rows, "a" * 64)
    assert all(part.rows <= max(part_rows, -(-longest // MOST_CUTS)) for part in planned)
    for file in files:
        if not file.groups:
            assert sum(s.path == file.path for part in planned for s in part.slices) <= MOST_CUTS


@given(files=files, part_rows=st.integers(1, 100))
def test_a_slice_is_found_by_reading_its_row_group(files: list[Counted], part_rows: int) -> None:
    for part in plan.parts(files, part_rows, "a" * 64):
        for piece in part.slices:
            file = next(file for file in files if file.path == piece.path)
            if piece.groups is None:
                assert (piece.first, file.groups) == (0, ())
            else:
                (group,) = piece.groups
                assert piece.first == sum(file.groups[:group])
                assert piece.first <= piece.start
                assert piece.start + piece.rows <= piece.first + file.groups[group]


@given(files=files, part_rows=st.integers(1, 100), done=st.sets(st.integers(0, 50)))
def test_what_is_left_and_what_is_done_make_the_whole(files: list[Counted], part_rows: int, done: set[int]) -> None:
    """A second call plans alike, also through the file the first has left, and names each part as the first did."""
    first = plan.parts(files, part_rows, "b" * 64)
    again = plan.from_json(json.loads(json.dumps(plan.to_json(plan.parts(list(files), part_rows, "b" * 64)))))
    assert again == first
    kept = {part.name for index, part in enumerate(first) if index in done}
    left = [part for part in again if part.name not in kept]
    assert kept.isdisjoint(part.name for part in left)
    assert sum(part.rows for part in left) + sum(p.rows for p in first if p.name in kept) == sum(f.rows for f in files)


@given(sizes=st.lists(st.integers(0, 100), max_size=50), part_rows=st.integers(1, 20), part_bytes=st.integers(1, 300))
def test_files_that_are_rows_are_dealt_in_order(sizes: list[int], part_rows: int, part_bytes: int) -> None:
    planned = plan.parts_of_contents(sizes, part_rows, "c" * 64, part_bytes)
    slices = [piece for part in planned for piece in part.slices]
    assert [row for piece in slices for row in range(piece.start, piece.start + piece.rows)] == list(range(len(sizes)))
    for piece in slices:
        assert 0 < piece.rows <= part_rows
        assert piece.rows == 1 or sum(sizes[piece.start : piece.start + piece.rows]) <= part_bytes


@pytest.mark.parametrize("change", [{"path": "b"}, {"size": 2}, {"modified_ns": 2}, {"version": "x"}])
def test_another_source_or_option_has_another_mark(change: dict[str, object]) -> None:
    file = {"path": "a", "size": 1, "modified_ns": 1, "version": ""}
    marked = plan.fingerprint([SourceFile(**file)], {"batch_rows": 64})  # type: ignore[arg-type]
    assert plan.fingerprint([SourceFile(**file)], {"batch_rows": 64}) == marked  # type: ignore[arg-type]
    assert plan.fingerprint([SourceFile(**file | change)], {"batch_rows": 64}) != marked  # type: ignore[arg-type]
    assert plan.fingerprint([SourceFile(**file)], {"batch_rows": 32}) != marked  # type: ignore[arg-type]


@given(sizes=st.lists(st.integers(0, 7), max_size=6), start=st.integers(0, 20), rows=st.integers(0, 20))
def test_rows_between_two_places(sizes: list[int], start: int, rows: int) -> None:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    chunks = [Chunk(pa.table({"x": range(s, s + n)}), "f", s) for s, n in zip(starts, sizes, strict=True)]
    found = list(plan.between(iter(chunks), start, start + rows))
    assert [value for chunk in found for value in chunk.table.column("x").to_pylist()] == list(
        range(start, min(start + rows, sum(sizes)))
    )
    assert all(chunk.table.column("x")[0].as_py() == chunk.start for chunk in found)


def test_files_of_each_kind_are_counted_with_their_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "CHUNK_ROWS", 1)
    pq.write_table(pa.table({"a": [1, 2, 3]}), tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "b.csv").write_text('a\n1\n"2\n3"\n')
    (tmp_path / "c.jsonl").write_text('{"a": 1}\n\n{"a": 2.5, "b": "x"}\n')
    found = {}
    for name in ("a.parquet", "b.csv", "c.jsonl"):
        rows = of_source(str(tmp_path / name))
        count, schema = plan.counted(rows, rows.files[0])
        found[name] = (count.rows, count.groups, dict(zip(schema.names, map(str, schema.types), strict=True)))
    assert found == {
        "a.parquet": (3, (2, 1), {"a": "int64"}),
        "b.csv": (2, (), {"a": "string"}),
        "c.jsonl": (2, (), {"a": "double", "b": "string"}),
    }


def test_a_part_is_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    assert not is_whole(path, 0)
    with pq.ParquetWriter(path, pa.schema([("a", pa.int64())]), write_page_checksum=True) as writer:
        writer.write_table(pa.table({"a": range(5000)}))
    assert is_whole(path, 5000)
    assert not is_whole(path, 4999)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert not is_whole(path, 5000)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert not is_whole(path, 5000)
