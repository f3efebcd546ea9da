"""Strangers for the tests, gone without a trace afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import stranger as strangers
from stranger import Stranger


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    made = strangers.new_stranger()
    yield made
    strangers.leave(made)


@pytest.fixture
def new_stranger() -> Iterator[Callable[[], Stranger]]:
    """Makes as many strangers as a test needs."""
    made: list[Stranger] = []

    def make() -> Stranger:
        made.append(strangers.new_stranger())
        return made[-1]

    yield make
    for stranger in made:
        strangers.leave(stranger)
