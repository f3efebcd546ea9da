"""A local Ray for the tests that need no more than its tasks and actors."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

RAY_SETTINGS = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "MLFLOW_TRACKING_URI",
    "TIDEGATE_LEDGER",
)


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """Ray with 8 CPUs in this process, in a home of its own. One a module: other modules join clusters of their own."""
    import ray

    # Ray puts sockets under its folder, and a socket's path has about 100 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="tg-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name in RAY_SETTINGS:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder / "home"))
        patch.setenv("TIDEGATE_HOME", str(folder / "home" / "tidegate"))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        try:
            ray.init(
                num_cpus=8,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=True,
                logging_level=logging.ERROR,
                _temp_dir=str(folder / "r"),
            )
            _quiet()
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def home(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh TIDEGATE_HOME for this test. Workers that run already keep theirs; they are told absolute paths."""
    path = tmp_path / "home"
    monkeypatch.setenv("TIDEGATE_HOME", str(path))
    return path


def _quiet() -> None:
    import ray.data  # noqa: F401

    from tidegate import connection

    with warnings.catch_warnings():
        # Ray Data's own defaults set values that it calls deprecated, once, when they are made.
        warnings.filterwarnings("ignore", "`use_.*` is deprecated", DeprecationWarning)
        connection.quiet()
