"""How far a command is, on stderr: a line that changes on a terminal, some lines in a log, nothing of a short one."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tidegate.console import PLAIN_EVERY_S, duration

QUIET_S = 2.0
LIVE_EVERY_S = 0.2


class Progress:
    """Counts rows; a context manager."""

    def __init__(self, total: int | None = None, out: Any = None) -> None:
        self._out = out or sys.stderr
        self._total, self._rows = total, 0
        self._began = time.monotonic()
        self._due = self._began + QUIET_S
        self._is_live, self._is_shown = bool(self._out.isatty()), False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live and self._is_shown:
            self._write("\r\x1b[K")

    def add(self, rows: int) -> None:
        self.reach(self._rows + rows, self._total)

    def reach(self, rows: int, total: int | None) -> None:
        """So many rows are done."""
        self._rows, self._total = rows, total
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + (LIVE_EVERY_S if self._is_live else PLAIN_EVERY_S)
        line = self._line(now - self._began)
        self._write(f"\r\x1b[K{line}" if self._is_live else f"{line}\n")
        self._is_shown = True

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def _line(self, seconds: float) -> str:
        speed = self._rows / seconds
        if not self._total:
            return f"{self._rows:,} rows, {speed:,.0f} rows/s"
        left = f", {duration((self._total - self._rows) / speed)} left" if self._rows else ""
        return f"{self._rows:,} of {self._total:,} rows, {speed:,.0f} rows/s{left}"
