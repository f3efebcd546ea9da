"""The lengths of prepared rows, and a plan that goes by them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from tidegate.data.lengths import FileLengths
from tidegate.data.plan import Plan
from tidegate.data.prepared import ROW, write_arrays
from tidegate.errors import DataError
from tidegate.transforms.base import length_key


def written(path: Path, first: list[int], second: list[int]) -> Path:
    columns = {
        length_key(name): np.array(values, np.int32).reshape(-1, 1)
        for name, values in zip("ab", (first, second), strict=True)
    }
    write_arrays(path, {ROW: np.arange(len(first)), "a": np.ones((len(first), 3), np.float32), **columns})
    return path


@pytest.fixture(name="lengths")
def _lengths(tmp_path: Path) -> FileLengths:
    files = written(tmp_path / "one", [1, 2, 3], [10, 10, 10]), written(tmp_path / "two", [4], [1])
    return FileLengths(files, (3, 1))


def test_lengths_of_several_inputs_are_added(lengths: FileLengths) -> None:
    assert lengths.of_file(0).tolist() == [11, 12, 13]
    assert lengths.of_file(1).tolist() == [5]


def test_a_plan_with_lengths_is_the_same_elsewhere(lengths: FileLengths) -> None:
    plan = Plan((3, 1), seed=0, global_batch=2, shards=1, lengths=lengths)
    again = copy.deepcopy(plan)
    assert again == plan
    assert hash(again) == hash(plan)
    assert [again.shard_rows(step, 0).tolist() for step in range(4)] == [
        plan.shard_rows(step, 0).tolist() for step in range(4)
    ]


def test_a_damaged_file_is_named(lengths: FileLengths) -> None:
    lengths.files[1].write_bytes(b"rubbish")
    with pytest.raises(DataError, match="two is damaged"):
        lengths.of_file(1)
