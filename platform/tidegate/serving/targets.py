"""What each replica is to serve, in a file that it watches: one of an endpoint, and one of the root.

Not in Serve's configuration: Serve takes a replica that it reconfigures out of its load balancer until that is done,
and to load a model may take minutes in which it could well answer from the one it has.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tidegate import disk, settings

ROOT = "_root"
"""No endpoint has such a name."""
WATCH_S = 0.25
"""How often a file is looked at."""


@dataclass(frozen=True)
class Target:
    """The version of an endpoint, and how it is to answer. `generation` tells two deploys of the same apart."""

    generation: int
    ref: str
    version: int
    path: str
    digest: str
    batch: dict[str, Any]
    limits: dict[str, Any]
    access: dict[str, Any]
    log: dict[str, Any]


def publish(name: str, document: dict[str, Any]) -> None:
    """Writes the file anew, so that a reader sees the old one or the new one, never a part. Raises OSError."""
    disk.write_whole(_path(name), (json.dumps(document, sort_keys=True) + "\n").encode())


def publish_target(name: str, target: Target) -> None:
    publish(name, asdict(target))


def withdraw(name: str) -> None:
    _path(name).unlink(missing_ok=True)


class Watch:
    """Reads the file of `name` whenever it has changed."""

    def __init__(self, name: str) -> None:
        self._path = _path(name)
        self._stamp: tuple[int, ...] = ()

    def changed(self) -> dict[str, Any] | None:
        """What it says now, None if that was returned before. Raises OSError and ValueError."""
        # Opened, not only looked at: on shared storage that is when other nodes' changes are seen.
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return None
            data = file.read()
        # Before it is understood: a damaged file is told of once.
        self._stamp = stamp
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError(f"{self._path} holds no object")
        return document


def _path(name: str) -> Path:
    folder = settings.home() / "targets"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.json"
