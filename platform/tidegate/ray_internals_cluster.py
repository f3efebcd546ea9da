"""The private names of Ray that joining a local cluster needs."""

from __future__ import annotations


def keep_loopback_addresses() -> None:
    """Stop Ray in this process from replacing 127.0.0.1 by the machine's outward address.

    The environment variable that says so is read when Ray is imported, which may have happened before.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def reread_settings() -> None:
    """Let Ray in this process see RAY_AUTH_MODE as it is now: it read the environment when it was imported."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")
