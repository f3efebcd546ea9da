"""How fast a worker goes and what it spends its time on. All times are of this process, in seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

TOLD_EVERY_S = 0.5


class Pace:
    """Counts rows and seconds of one group of workers. The first step pays for start-up: speeds begin at its end."""

    def __init__(self) -> None:
        self.saved_at = time.monotonic()
        self.checkpointing_s = 0.0
        self.loss = float("nan")
        self._began_at = self._first_at = self._told_at = self._epoch_at = 0.0
        self._rows = self._rows_told = self._rows_epoch = 0

    def begin(self) -> None:
        """Steps are about to be taken."""
        self.saved_at = self._began_at = self._epoch_at = time.monotonic()

    def step(self, rows: int) -> None:
        self._rows += rows
        self._rows_epoch += rows

    @property
    def training_s(self) -> float:
        return time.monotonic() - self._began_at - self.checkpointing_s

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Around what keeps the steps waiting for a checkpoint."""
        start = time.monotonic()
        yield
        self.checkpointing_s += time.monotonic() - start

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Around the validation of an epoch, which the next speed of steps does not count."""
        start = time.monotonic()
        yield
        self._told_at += time.monotonic() - start

    def is_due(self) -> bool:
        """Whether it is time to tell: at the first step, and then every so often."""
        return time.monotonic() - self._told_at >= TOLD_EVERY_S

    def speeds(self) -> tuple[float, float]:
        """Rows per second of steps since the last call, and of all since the first step. Zero at the first step."""
        now = time.monotonic()
        if not self._first_at:
            self._first_at = self._told_at = now
            self._rows = self._rows_told = 0
            return 0.0, 0.0
        speed = (self._rows - self._rows_told) / max(now - self._told_at, 1e-9)
        self._told_at, self._rows_told = now, self._rows
        return speed, self._rows / max(now - self._first_at, 1e-9)

    def epoch_speed(self) -> float:
        """Rows per second since the last call, or the beginning."""
        now = time.monotonic()
        speed = self._rows_epoch / max(now - self._epoch_at, 1e-9)
        self._epoch_at, self._rows_epoch = now, 0
        return speed
