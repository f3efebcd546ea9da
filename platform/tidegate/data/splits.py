"""Which row goes to which split, and in which order: decided once, from row numbers alone."""

from __future__ import annotations

import numpy as np

from tidegate.data.prepared import SPLITS
from tidegate.data.random import Rows, permutation
from tidegate.errors import DataError
from tidegate.spec.data import Split
from tidegate.transforms.base import Array

SPLIT_STREAM, SHUFFLE_STREAM = 0, 1


def assign(split: Split, seed: int, *, strata: Array | None, named: Array | None, count: int) -> list[Rows]:
    """Positions (0..count-1) of the training, validation and test rows.

    `strata` `[count]` are the values to stratify by, `named` `[count]` those of the split column. The training rows are
    shuffled, since sources are often sorted; the others keep their order. Raises DataError for an empty split.
    """
    parts = _by_name(named) if named is not None else _by_fraction(split, seed, strata, count)
    for name, rows in zip(SPLITS, parts, strict=True):
        if not len(rows):
            raise DataError(
                f"the {name} split is empty ({count} usable rows)",
                remedy="give more rows, or change data.split",
            )
    train = parts[0]
    return [train[permutation(len(train), key=(seed, 0), stream=SHUFFLE_STREAM)], parts[1], parts[2]]


def _by_name(named: Array) -> list[Rows]:
    return [np.flatnonzero(named == name).astype(np.int64) for name in SPLITS]


def _by_fraction(split: Split, seed: int, strata: Array | None, count: int) -> list[Rows]:
    order = permutation(count, key=(seed, 0), stream=SPLIT_STREAM)
    groups = [order] if strata is None else _grouped(order, strata)
    cuts = [[], [], []]  # type: list[list[Rows]]
    for group in groups:
        first = round(len(group) * split.train)
        second = round(len(group) * (split.train + split.validation))
        for part, rows in zip(cuts, np.split(group, [first, second]), strict=True):
            part.append(rows)
    return [np.sort(np.concatenate(part)) for part in cuts]


def _grouped(order: Rows, strata: Array) -> list[Rows]:
    values, codes = np.unique(strata.astype(str), return_inverse=True)
    if len(values) > max(2, len(strata) // 2):
        raise DataError(
            f"data.split.stratify names a column with {len(values)} different values in {len(strata)} rows",
            expected="a column of few values, such as a class",
        )
    return [order[codes[order] == code] for code in range(len(values))]
