"""Rows of different sizes: those alike are asked together, and the answers come back in the order of the rows.

Such an input is an object array `[rows]` of arrays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tidegate.tensors import Array

Arrays = Mapping[str, Array]
Ask = Callable[[Arrays], dict[str, Array]]


def ragged(rows: Sequence[Array]) -> Array:
    """The rows as one input."""
    array = np.empty(len(rows), dtype=object)
    for place, row in enumerate(rows):
        array[place] = row
    return array


def is_ragged(array: Array) -> bool:
    return array.dtype == object and len(array) > 0 and isinstance(array[0], np.ndarray)


def alike(ask: Ask) -> Ask:
    """`ask` for inputs that may be ragged: it is called once for each size there is."""

    def asked(inputs: Arrays) -> dict[str, Array]:
        names = [name for name, array in inputs.items() if is_ragged(array)]
        if not names:
            return ask(inputs)
        places: defaultdict[tuple[tuple[int, ...], ...], list[int]] = defaultdict(list)
        for row, values in enumerate(zip(*(inputs[name] for name in names), strict=True)):
            places[tuple(value.shape for value in values)].append(row)
        answers = [ask(_taken(inputs, rows)) for rows in places.values()]
        back = np.argsort(np.concatenate(list(places.values())), kind="stable")
        return {name: np.concatenate([answer[name] for answer in answers])[back] for name in answers[0]}

    return asked


def _taken(inputs: Arrays, rows: list[int]) -> dict[str, Array]:
    taken = {name: array[rows] for name, array in inputs.items()}
    return {name: np.stack(list(array)) if is_ragged(array) else array for name, array in taken.items()}
