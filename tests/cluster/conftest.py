"""A local Ray for the tests that need no more than its tasks and actors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local_ray import local_ray


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """Ray with 8 CPUs in this process, in a home of its own. One a module: other modules join clusters of their own."""
    with local_ray(cpus=8):
        yield


@pytest.fixture
def home(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh TIDEGATE_HOME for this test. Workers that run already keep theirs; they are told absolute paths."""
    path = tmp_path / "home"
    monkeypatch.setenv("TIDEGATE_HOME", str(path))
    return path


@pytest.fixture
def ledger(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that workers record their rows in."""
    folder = tmp_path / "ledger"
    folder.mkdir()
    monkeypatch.setenv("TIDEGATE_LEDGER", str(folder))
    return folder
