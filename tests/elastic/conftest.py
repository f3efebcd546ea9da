"""A local Ray, as in tests/cluster, for the long matrix: every model, feed and history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray import cloudpickle

import own_models
import stranger as strangers
from local_ray import local_ray
from stranger import Stranger


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """Ray with 8 CPUs in this process, in a home of its own."""
    # Workers do not find the modules of tests by name.
    cloudpickle.register_pickle_by_value(own_models)
    with local_ray(cpus=8):
        yield
    cloudpickle.unregister_pickle_by_value(own_models)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that workers record their rows in."""
    folder = tmp_path / "ledger"
    folder.mkdir()
    monkeypatch.setenv("TIDEGATE_LEDGER", str(folder))
    return folder


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


@pytest.fixture
def stranger(new_stranger: Callable[[], Stranger]) -> Stranger:
    """One of them."""
    return new_stranger()
