"""What a person sees of a run: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, TextIO

from tidegate.metrics import text
from tidegate.training.progress import News, Phase, Progress, counted

PLAIN_EVERY_S = 10.0
"""In a log, progress between epochs is told this often."""
EPOCH_LINES_EVERY_S = 1.0
"""Epochs shorter than this are not all told: a log of a thousand lines tells less than one of ten."""
PHASES: dict[Phase, str] = {
    "preparing": "preparing data",
    "waiting": "waiting for room",
    "starting": "starting workers",
    "training": "training",
    "yielding": "at a checkpoint, to change the workers",
    "pausing": "pausing at a checkpoint",
    "paused": "paused",
    "stopping": "stopping at a checkpoint",
    "finishing": "evaluating and registering",
}


class Console:
    """Use as a context manager around a run; `say` and `on_news` are what a run calls, from any thread."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self._lock = threading.RLock()
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
        with self._lock:
            self._close_bar()

    def say(self, line: str) -> None:
        """One message, on lines of its own."""
        with self._lock:
            self._close_bar()
            print(line, file=self.out, flush=True)

    def on_news(self, news: News) -> None:
        with self._lock:
            for record in news.epochs:
                self._epoch(record)
            for line in news.lines:
                self._release()
                self._print(line)
            self._progress(news)

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
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self.out, flush=True)

    def _progress(self, news: News) -> None:
        if self.out.isatty():
            self._draw(news)
        elif news.phase == "training" and news.progress.total_steps and self._is_due():
            print(sentence(news.progress), file=self.out, flush=True)

    def _is_due(self) -> bool:
        due = time.monotonic() - self._told_at > PLAIN_EVERY_S
        if due:
            self._told_at = time.monotonic()
        return due

    def _draw(self, news: News) -> None:
        if self._bar is None:
            self._open_bar()
        self._bar.update(
            self._task,
            total=news.progress.total_steps or None,
            completed=news.progress.step,
            description=live(news),
        )

    def _open_bar(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        # It goes when other lines are said, and comes again below them.
        self._bar = Bar(
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=RichConsole(file=self.out),
            transient=True,
        )
        self._task = self._bar.add_task("")
        self._bar.start()

    def _close_bar(self) -> None:
        self._release()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _release(self) -> None:
        """Print the epoch that was held back."""
        if self._held:
            self._print(self._held)
            self._held = ""


def live(news: News) -> str:
    """Where a run is and what it is at: the sentence of its progress, or `paused, step 120/400`."""
    progress = news.progress
    if news.phase == "training" and progress.total_steps:
        return sentence(progress)
    where = f", step {progress.step}/{progress.total_steps}" if progress.total_steps else ""
    return f"{PHASES[news.phase]}{where}{f', {news.note}' if news.note else ''}"


def sentence(progress: Progress) -> str:
    """`step 120/400, epoch 3/10, loss 0.0521, 2 workers, 4,033 rows/s, 12 s left`; no speed before it is known."""
    speed = (
        f", {progress.rows_per_s:,.0f} rows/s, {duration(progress.seconds_left)} left" if progress.rows_per_s else ""
    )
    return (
        f"step {progress.step}/{progress.total_steps}, epoch {progress.epoch}/{progress.epochs}, "
        f"loss {text(progress.loss)}, {counted(progress.workers, 'worker')}{speed}"
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
