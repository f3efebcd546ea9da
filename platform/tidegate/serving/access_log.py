"""A line of JSON for some of an endpoint's requests, in a file of the replica's own beside Serve's logs."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

_MOST_BYTES = 16 * 1024 * 1024
_KEPT_FILES = 3


class AccessLog:
    """Writes a `fraction` of the requests. Writing happens in a thread: a slow disk delays no answer."""

    def __init__(self, path: Path, endpoint: str, fraction: float) -> None:
        self.fraction = fraction
        self._endpoint = endpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = RotatingFileHandler(path, maxBytes=_MOST_BYTES, backupCount=_KEPT_FILES, delay=True)
        queue: SimpleQueue[Any] = SimpleQueue()
        self._listener = QueueListener(queue, self._file)
        self._listener.start()
        # In no tree of loggers: levels and handlers that Serve sets are for other lines.
        self._logger = logging.Logger("access")
        self._logger.addHandler(QueueHandler(queue))

    def wants(self) -> bool:
        return self.fraction > 0 and random.random() < self.fraction

    def write(self, line: Mapping[str, object]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._logger.info("%s", json.dumps({"time": now, "endpoint": self._endpoint, **line}))

    def close(self) -> None:
        """Returns when all lines are written."""
        self._listener.stop()
        self._file.close()
