"""What a person sees of a run: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from tidegate.metrics import text
from tidegate.training.progress import News, Progress

PLAIN_EVERY_S = 10.0
"""In a log, progress between epochs is told this often."""
EPOCH_LINES_EVERY_S = 1.0
"""Epochs shorter than this are not all told: a log of a thousand lines tells less than one of ten."""


class Console:
    """Use as a context manager around a run; `say` and `on_news` are what a run calls."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self._bar: Any = None
        self._task: Any = None
        self._told_at = 0.0
        self._epoch_at = 0.0
        self._held: str = ""

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_bar()

    def say(self, line: str) -> None:
        """One message, on lines of its own."""
        self._close_bar()
        print(line, file=self.out, flush=True)

    def on_news(self, news: News) -> None:
        for record in news.epochs:
            self._epoch(record)
        if news.progress.total_steps:
            self._progress(news.progress)

    def _epoch(self, record: Any) -> None:
        measured = "  ".join(
            f"{key} {text(record[key])}"
            for key in ("train.loss", "validation.loss", *_headline(record))
            if key in record
        )
        line = f"epoch {record['epoch']:>3}  {measured}"
        if time.monotonic() - self._epoch_at < EPOCH_LINES_EVERY_S:
            self._held = line
            return
        self._epoch_at, self._held = time.monotonic(), ""
        self._print(line)

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, file=self.out, flush=True)

    def _progress(self, progress: Progress) -> None:
        if self.out.isatty():
            self._draw(progress)
        elif time.monotonic() - self._told_at > PLAIN_EVERY_S:
            self._told_at = time.monotonic()
            print(sentence(progress), file=self.out, flush=True)

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            self._open_bar()
        self._bar.update(
            self._task, total=progress.total_steps, completed=progress.step, description=sentence(progress)
        )

    def _open_bar(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(BarColumn(bar_width=24), TextColumn("{task.description}"), console=RichConsole(file=self.out))
        self._task = self._bar.add_task("")
        self._bar.start()

    def _close_bar(self) -> None:
        if self._held:
            self._print(self._held)
            self._held = ""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def sentence(progress: Progress) -> str:
    """`step 120/400, epoch 3/10, loss 0.0521, 4,033 rows/s, 2 workers, 12 s left`."""
    workers = "1 worker" if progress.workers == 1 else f"{progress.workers} workers"
    return (
        f"step {progress.step}/{progress.total_steps}, epoch {progress.epoch}/{progress.epochs}, "
        f"loss {text(progress.loss)}, {progress.rows_per_s:,.0f} rows/s, {workers}, "
        f"{duration(progress.seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """`42 s`, `3 min 10 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _headline(record: Any) -> list[str]:
    return [key for key in ("validation.accuracy", "validation.r2") if key in record]
