"""A local Ray for the tests that need no more than its tasks and actors."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def own_surroundings() -> Iterator[Path]:
    """The environment of a Ray of our own: a fresh home, no settings from outside. Its folder, which is deleted."""
    # Ray puts sockets under its folder, and a socket's path has about 100 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="tg-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name in RAY_SETTINGS:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder / "home"))
        patch.setenv("TIDEGATE_HOME", str(folder / "home" / "tidegate"))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        from ray._private import auto_init_hook  # reads settings, so not before they are made

        # Threads of Serve's handles outlive `ray.shutdown()` and this block, and what they ask next would start a Ray
        # of its own beside the next test's: never undone.
        auto_init_hook.enable_auto_connect = False
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """Ray in this process, in a home of its own."""
    import ray

    with own_surroundings() as folder:
        try:
            ray.init(
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=True,
                logging_level=logging.ERROR,
                _temp_dir=str(folder / "r"),
            )
            quiet()
            yield
        finally:
            ray.shutdown()


def quiet() -> None:
    """Keep Ray's and Ray Data's messages away from a test's output."""
    import ray.data  # noqa: F401

    from tidegate import connection

    connection.quiet()
