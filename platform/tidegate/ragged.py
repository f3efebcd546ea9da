"""Rows of different sizes: those alike are asked together, and the answers come back in the order of the rows.

Such an input is an object array `[rows]` of arrays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tidegate.tensors import Array

Columns = Mapping[str, Any]
"""Arrays or lists by input, with as many entries each."""
Ask = Callable[[Columns], dict[str, Array]]


def is_ragged(array: object) -> bool:
    return (
        isinstance(array, np.ndarray) and array.dtype == object and len(array) > 0 and isinstance(array[0], np.ndarray)
    )


def alike(ask: Ask) -> Ask:
    """`ask` for inputs that may be ragged: it is called once for each size there is."""

    def asked(inputs: Columns) -> dict[str, Array]:
        parts = grouped(inputs)
        return in_order([rows for rows, _ in parts], [ask(part) for _, part in parts])

    return asked


def grouped(inputs: Columns) -> list[tuple[Sequence[int], Columns]]:
    """The rows of each size, and their inputs; all of them as they are where none is ragged."""
    names = [name for name, array in inputs.items() if is_ragged(array)]
    if not names:
        return [(range(len(next(iter(inputs.values())))), inputs)]
    places: defaultdict[tuple[tuple[int, ...], ...], list[int]] = defaultdict(list)
    for row, values in enumerate(zip(*(inputs[name] for name in names), strict=True)):
        places[tuple(value.shape for value in values)].append(row)
    return [(rows, _taken(inputs, rows)) for rows in places.values()]


def in_order(rows: Sequence[Sequence[int]], answers: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The answers to parts of the rows, side by side in the order of the rows."""
    if len(answers) == 1:
        return dict(answers[0])
    back = np.argsort(np.concatenate(rows), kind="stable")
    return {name: np.concatenate([answer[name] for answer in answers])[back] for name in answers[0]}


def _taken(inputs: Columns, rows: list[int]) -> dict[str, Any]:
    return {name: _of(values, rows) for name, values in inputs.items()}


def _of(values: Any, rows: list[int]) -> Any:
    if not isinstance(values, np.ndarray):
        return [values[row] for row in rows]
    return np.stack(list(values[rows])) if is_ragged(values) else values[rows]
