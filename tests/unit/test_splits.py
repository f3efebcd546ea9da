"""Splits: every row in one of them, by fraction, by stratum or as the source says, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_iris

from tidegate.data.splits import assign
from tidegate.errors import DataError
from tidegate.spec.data import Split


@given(
    count=st.integers(100, 400),
    seed=st.integers(0, 2**63 - 1),
    classes=st.none() | st.integers(1, 5),
    train=st.integers(10, 80),
    validation=st.integers(10, 80),
)
@settings(max_examples=300, deadline=None)
def test_every_row_is_in_exactly_one_split(
    count: int, seed: int, classes: int | None, train: int, validation: int
) -> None:
    total = train + validation + 20
    split = Split(train=train / total, validation=validation / total, test=20 / total)
    strata = None if classes is None else np.arange(count).astype(object) % classes
    parts = assign(split, seed, strata=strata, named=None, count=count)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    groups = classes or 1
    for rows, fraction in zip(parts, (split.train, split.validation, split.test), strict=True):
        assert rows.dtype == np.int64
        assert abs(len(rows) - count * fraction) <= 1.5 * groups
    again = assign(split, seed, strata=strata, named=None, count=count)
    assert [rows.tolist() for rows in again] == [rows.tolist() for rows in parts]


@pytest.mark.parametrize("labels", [load_digits().target, load_iris().target])
def test_stratified_splits_keep_the_share_of_each_class(labels: np.ndarray) -> None:
    split = Split(train=0.7, validation=0.15, test=0.15)
    parts = assign(split, 3, strata=labels.astype(str).astype(object), named=None, count=len(labels))
    for label, size in zip(*np.unique(labels, return_counts=True), strict=True):
        for rows, fraction in zip(parts, (0.7, 0.15, 0.15), strict=True):
            assert abs((labels[rows] == label).sum() - size * fraction) <= 1


def test_rows_are_shuffled_for_training_and_kept_in_order_elsewhere() -> None:
    parts = assign(Split(), 0, strata=None, named=None, count=1000)
    assert [len(rows) for rows in parts] == [800, 100, 100]
    assert not (np.diff(parts[0]) > 0).all()
    assert abs(np.corrcoef(np.arange(800), parts[0])[0, 1]) < 0.15
    for rows in parts[1:]:
        assert (np.diff(rows) > 0).all()
    other = assign(Split(), 1, strata=None, named=None, count=1000)
    assert set(other[2].tolist()) != set(parts[2].tolist())


def test_the_split_never_changes_between_releases() -> None:
    """Test rows of a published model must stay test rows."""
    parts = assign(Split(train=0.5, validation=0.25, test=0.25), 7, strata=None, named=None, count=12)
    assert [rows.tolist() for rows in parts] == GOLDEN
    strata = np.array(["a", "b", "b"] * 4, object)
    parts = assign(Split(train=0.5, validation=0.25, test=0.25), 7, strata=strata, named=None, count=12)
    assert [rows.tolist() for rows in parts] == GOLDEN_STRATIFIED


GOLDEN = [[3, 8, 2, 4, 6, 1], [5, 7, 11], [0, 9, 10]]
GOLDEN_STRATIFIED = [[3, 8, 2, 4, 6, 1], [7, 9, 11], [0, 5, 10]]


def test_a_column_says_the_split() -> None:
    named = np.array(["test", "train", "validation", "train", "train", "test"], object)
    parts = assign(Split(column="part"), 0, strata=None, named=named, count=6)
    assert sorted(parts[0].tolist()) == [1, 3, 4]
    assert [rows.tolist() for rows in parts[1:]] == [[2], [0, 5]]


@pytest.mark.parametrize(
    ("named", "empty"),
    [(["train", "test"], "validation"), (["validation", "test"], "train"), (["train", "validation"], "test")],
)
def test_an_empty_named_split_is_refused(named: list[str], empty: str) -> None:
    with pytest.raises(DataError, match=rf"the {empty} split is empty \(2 usable rows\)"):
        assign(Split(column="part"), 0, strata=None, named=np.array(named, object), count=2)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_rows_are_refused(count: int) -> None:
    with pytest.raises(DataError, match="split is empty"):
        assign(Split(), 0, strata=None, named=None, count=count)


def test_stratifying_by_a_column_of_many_values_is_refused() -> None:
    strata = np.array([str(number) for number in range(100)], object)
    with pytest.raises(DataError, match="100 different values in 100 rows"):
        assign(Split(), 0, strata=strata, named=None, count=100)


def test_a_class_of_one_row_goes_to_one_split() -> None:
    strata = np.array(["rare", *["common"] * 99], object)
    parts = assign(Split(), 0, strata=strata, named=None, count=100)
    assert sum(0 in rows for rows in parts) == 1
