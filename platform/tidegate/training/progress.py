"""What a run tells the person who watches it: where it is, what it spent its time on, and each finished epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

STATUS = "status.json"

Phase = Literal[
    "preparing", "waiting", "starting", "training", "yielding", "pausing", "paused", "stopping", "finishing"
]
"""Preparing data; waiting for room; workers starting; training; at a checkpoint to change size; the same to pause or to
stop; training is done, and the model is evaluated, registered and published."""


@dataclass(frozen=True)
class Progress:
    """Where a run is. `step` counts finished steps; `loss` is the last batch's; `seconds_left` is a guess.

    The seconds are those of this group of workers: what its loop spent on steps and on waiting for checkpoints.
    """

    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float = float("nan")
    rows_per_s: float = 0.0
    workers: int = 0
    seconds_left: float = 0.0
    training_s: float = 0.0
    checkpointing_s: float = 0.0
    checkpoints: int = 0


@dataclass(frozen=True)
class Totals:
    """Of a run's whole history, over all its groups of workers and all its drivers.

    `restarting_s` runs from when workers were let go or lost to the first step of those that follow; neither a pause
    nor waiting for room after it counts.
    """

    groups: int = 0
    resizes: int = 0
    restarts: int = 0
    pauses: int = 0
    steps_twice: int = 0
    training_s: float = 0.0
    checkpointing_s: float = 0.0
    restarting_s: float = 0.0
    checkpoints: int = 0

    def plus(self, **more: float) -> Totals:
        return replace(self, **{name: getattr(self, name) + value for name, value in more.items()})

    @classmethod
    def read(cls, folder: Path) -> Totals:
        """What earlier drivers of a run left in its folder; zeros when there was none."""
        found = Last.read(folder)
        return found.totals if found else cls()


@dataclass(frozen=True)
class News:
    """What happened since the last look. `wanted` is the size asked for, None when nobody did.

    `lines` are sentences for the person who follows the run; `bounds` its fewest and most workers.
    """

    progress: Progress
    epochs: list[Mapping[str, Any]] = field(default_factory=list)
    phase: Phase = "waiting"
    totals: Totals = Totals()
    wanted: int | None = None
    lines: list[str] = field(default_factory=list)
    bounds: tuple[int, int] = (1, 1)
    note: str = ""
    """What the run waits for."""

    def measured(self) -> dict[str, float]:
        """How the run fares, as the names of MLflow's metrics have it."""
        return {
            "run.workers": self.progress.workers,
            "run.samples_per_s": self.progress.rows_per_s,
            "run.resizes": self.totals.resizes,
            "run.restarts": self.totals.restarts,
            "run.pauses": self.totals.pauses,
            "run.steps_twice": self.totals.steps_twice,
            "run.training_s": self.totals.training_s,
            "run.checkpointing_s": self.totals.checkpointing_s,
            "run.restarting_s": self.totals.restarting_s,
        }

    def write(self, folder: Path) -> None:
        """Keep progress and totals in a run's folder, for when its driver is gone."""
        folder.mkdir(parents=True, exist_ok=True)
        kept = Last(self.progress, self.totals)
        if not self.progress.total_steps and (before := Last.read(folder)):
            # No worker has told anything yet: the run stands where an earlier driver left it.
            kept = replace(before, totals=self.totals)
        work = folder / f"{STATUS}.partial"
        work.write_text(json.dumps(asdict(kept)))
        work.replace(folder / STATUS)


@dataclass(frozen=True)
class Last:
    """The progress and totals of a run as its last driver left them."""

    progress: Progress
    totals: Totals

    @classmethod
    def read(cls, folder: Path) -> Last | None:
        """None when there is nothing, or nothing whole."""
        try:
            found = json.loads((folder / STATUS).read_text())
            return cls(Progress(**found["progress"]), Totals(**found["totals"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def counted(number: int, what: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{number} {what}{'s' * (number != 1)}"
