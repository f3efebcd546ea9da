"""What may befall a run: resizes on request, workers and drivers that are killed. The result stays the same."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from live_runs import Driver, InThread, folder_of, kill_worker, steps_done, workers_of
from tidegate.data.prepared import Prepared
from tidegate.spec.run import Spec
from tidegate.training.checkpoint import Checkpoint
from tidegate.training.progress import Totals


def totals_of(run: str) -> Totals:
    """What the run's folder says of its whole history."""
    return Totals.read(folder_of(run))


def losses_account_for(unfinished: int, losses: int) -> bool:
    """Whether so many steps can be in the ledger that were not counted, after so many losses.

    Counted is what the first rank finished. A loss leaves the step it was in and, when another worker had that one's
    result and the first rank not yet, the next: to end that one takes the first rank's part.
    """
    return 0 <= unfinished <= 2 * losses


def resized(spec: Spec, prepared: Prepared, run: str, sizes: Iterable[int], **options: Any) -> Checkpoint:
    """A run that is asked for one size after the other, each once it has taken some steps at the one before."""
    with InThread(spec, prepared, run, **options) as going:
        for workers in sizes:
            going.resize(workers)
            going.until_step(steps_done(run) + 20)
        return going.final()


def robbed(spec: Spec, run: str, ledger: Path, luck: Random, loop: str = "") -> tuple[Checkpoint, float]:
    """A run that loses two workers and its driver at random steps, and is carried to the end by a second driver.

    Also the seconds from the driver's end to the first row of the next.
    """
    with Driver(spec, run, loop) as driver:
        for group in (1, 2):
            begun = driver.until_group(group).progress.step
            driver.until_step(begun + luck.randint(20, 300))
            kill_worker(luck.choice(workers_of(run, ledger)))
        begun = driver.until_group(3).progress.step
        driver.until_step(begun + luck.randint(20, 300))
        driver.until(lambda: totals_of(run).groups == 3)
        before = set(workers_of(run, ledger))
        driver.kill()
        killed_at = time.monotonic()
    with Driver(spec, run, loop) as driver:
        driver.until(lambda: bool(set(workers_of(run, ledger)) - before))
        seconds = time.monotonic() - killed_at
        return driver.final(), seconds
