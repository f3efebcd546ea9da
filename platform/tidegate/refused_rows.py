"""Which row of many it was that a model refused: a refusal of several rows names none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tidegate.errors import RequestError
from tidegate.tensors import Array

Arrays = Mapping[str, Array]
Answers = dict[str, Array]


def answered(ask: Callable[[Arrays], Answers], inputs: Arrays) -> Iterator[tuple[int, Answers | RequestError]]:
    """Row by row in order: how many rows next, and their answers; or 1, and why that row was refused."""
    rows = len(next(iter(inputs.values())))
    try:
        yield rows, ask(inputs)
        return
    except RequestError as error:
        if rows == 1:
            yield 1, error
            return
    half = rows // 2
    yield from answered(ask, {name: array[:half] for name, array in inputs.items()})
    yield from answered(ask, {name: array[half:] for name, array in inputs.items()})
