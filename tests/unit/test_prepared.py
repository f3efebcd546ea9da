"""Prepared files: what is written is read back, any rows of them; damage is found and named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from tidegate.data.prepared import (
    FORMAT,
    MANIFEST,
    ROW,
    TARGET,
    Reader,
    arrays_batch,
    batch_arrays,
    open_arrays,
    open_folder,
    write_arrays,
)
from tidegate.errors import DataError

DIGITS = load_digits()
ARRAYS = {
    ROW: np.arange(1797, dtype=np.int64),
    TARGET: DIGITS.target.astype(np.int64),
    "pixels": DIGITS.data.astype(np.float32),
    "codes": (DIGITS.data % 3).astype(np.int32),
}
ROWS = (700, 1, 900, 196)


def files(folder: Path) -> list[Path]:
    """The digits in four files."""
    edges = np.cumsum([0, *ROWS])
    paths = [folder / f"train-{number:05d}.arrow" for number in range(len(ROWS))]
    for path, start, stop in zip(paths, edges, edges[1:], strict=False):
        write_arrays(path, {name: array[start:stop] for name, array in ARRAYS.items()})
    return paths


def check_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes()


def test_arrays_round_trip_without_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    assert write_arrays(path, ARRAYS) == path.stat().st_size
    found = open_arrays(path, 1797)
    check_equal(found, ARRAYS)
    for array in found.values():
        assert not array.flags.owndata
        assert not array.flags.writeable
    # The views outlive the opened file.
    assert found["pixels"].sum() == ARRAYS["pixels"].sum()


def test_a_batch_round_trips_also_when_it_is_empty_or_sliced() -> None:
    check_equal(batch_arrays(arrays_batch(ARRAYS)), ARRAYS)
    none = {name: array[:0] for name, array in ARRAYS.items()}
    check_equal(batch_arrays(arrays_batch(none)), none)
    check_equal(
        batch_arrays(arrays_batch(ARRAYS).slice(100, 7)), {name: array[100:107] for name, array in ARRAYS.items()}
    )
    turned = {"x": np.arange(12.0).reshape(3, 4).T}
    check_equal(batch_arrays(arrays_batch(turned)), turned)


def test_the_same_arrays_are_the_same_bytes(tmp_path: Path) -> None:
    def digest(name: str) -> str:
        write_arrays(tmp_path / name, ARRAYS)
        return hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()

    assert digest("a") == digest("b")


@pytest.fixture(scope="module", name="reader")
def _reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(files(tmp_path_factory.mktemp("prepared")), ROWS)


@given(rows=st.lists(st.integers(0, 1796), min_size=1, max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_rows_are_read_in_their_order(reader: Reader, rows: list[int]) -> None:
    check_equal(reader.read(np.array(rows, np.int64)), {name: array[rows] for name, array in ARRAYS.items()})


def test_no_rows_are_read_as_none(reader: Reader) -> None:
    check_equal(reader.read(np.array([], np.int64)), {name: array[:0] for name, array in ARRAYS.items()})


def test_what_is_read_is_a_copy(reader: Reader) -> None:
    rows = np.array([0, 1000], np.int64)
    for numbers in (rows, rows[:1]):
        reader.read(numbers)["pixels"][:] = -1
        assert reader.read(numbers)["pixels"].min() == 0


@pytest.mark.parametrize("row", [-1, 1797])
def test_a_row_that_does_not_exist_is_no_row(reader: Reader, row: int) -> None:
    with pytest.raises((IndexError, DataError)):
        reader.read(np.array([0, row], np.int64))
    with pytest.raises((IndexError, DataError)):
        reader.read(np.array([row], np.int64))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path, *_ = files(tmp_path)
    whole = path.read_bytes()
    with pytest.raises(DataError, match=r"train-00000\.arrow is damaged: 700 rows, not 701"):
        open_arrays(path, 701)
    for size in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"train-00000\.arrow is damaged"):
            open_arrays(path, 700)
    path.write_bytes(b"x" * len(whole))
    with pytest.raises(DataError, match="is damaged"):
        Reader([path], [700]).read(np.array([0], np.int64))
    path.unlink()
    with pytest.raises(DataError, match="is damaged"):
        open_arrays(path, 700)


@given(data=st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_no_bytes_raise_another_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.arrow"
    path.write_bytes(data)
    with pytest.raises(DataError):
        open_arrays(path, 3)


def manifest(folder: Path) -> dict[str, Any]:
    entries = [
        {"name": path.name, "rows": rows, "bytes": path.stat().st_size}
        for path, rows in zip(files(folder), ROWS, strict=True)
    ]
    image = {"type": "image", "shape": [8, 8, 1], "max_value": 16.0, "mean": [0.3], "deviation": [0.4]}
    return {
        "format": FORMAT,
        "fingerprint": "f" * 64,
        "columns": {"pixels": image},
        "target": {"column": "label", "state": {"type": "category", "classes": list("0123456789")}},
        "splits": {"train": entries, "validation": entries[:1], "test": entries[1:3]},
    }


def test_a_folder_is_opened_by_its_manifest(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(manifest(tmp_path)))
    prepared = open_folder(tmp_path)
    assert prepared.fingerprint == "f" * 64
    assert prepared.rows_per_file("train") == ROWS
    assert [prepared.num_rows(split) for split in ("train", "validation", "test")] == [1797, 700, 901]
    assert [feature.name for feature in prepared.features] == ["pixels"]
    assert prepared.target.feature.cardinality == 10
    rows = np.array([701, 0, 900], np.int64)
    check_equal(prepared.reader("train").read(rows), {name: array[rows] for name, array in ARRAYS.items()})
    check_equal(prepared.reader("test").read(rows[1:2]), {name: array[700:701] for name, array in ARRAYS.items()})


def drop(document: Any, *path: Any) -> Any:
    for step in path[:-1]:
        document = document[step]
    del document[path[-1]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(format=FORMAT + 1), "format 2, not 1"),
        (lambda m: drop(m, "format"), "format"),
        (lambda m: drop(m, "splits"), "splits"),
        (lambda m: drop(m, "splits", "test"), "test"),
        (lambda m: drop(m, "splits", "train", 0, "bytes"), "bytes"),
        (lambda m: drop(m, "splits", "train", 0, "rows"), "rows"),
        (lambda m: drop(m, "columns"), "columns"),
        (lambda m: drop(m, "target"), "target"),
        (lambda m: drop(m, "fingerprint"), "fingerprint"),
        (lambda m: m.update(splits=3), "cannot be used"),
        (lambda m: m["splits"]["train"][0].update(name="none.arrow"), r"none\.arrow"),
        (lambda m: m["splits"]["train"][0].update(bytes=1), "has [0-9]+ bytes, not 1"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    document = manifest(tmp_path)
    change(document)
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(DataError, match=says):
        open_folder(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"x"', "\x00"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DataError, match="cannot be used"):
        open_folder(tmp_path)


def test_a_folder_without_a_manifest_or_with_a_cut_file_is_refused(tmp_path: Path) -> None:
    document = manifest(tmp_path)
    with pytest.raises(DataError, match="cannot be used"):
        open_folder(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    open_folder(tmp_path)
    cut = tmp_path / "train-00002.arrow"
    cut.write_bytes(cut.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"train-00002\.arrow has [0-9]+ bytes, not"):
        open_folder(tmp_path)
    cut.unlink()
    with pytest.raises(DataError, match=r"train-00002\.arrow"):
        open_folder(tmp_path)
