"""Strangers for the tests, gone without a trace afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import stranger as strangers
from stranger import Stranger


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    made = strangers.new_stranger()
    yield made
    strangers.leave(made)
