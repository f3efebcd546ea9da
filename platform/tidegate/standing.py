"""How runs stand: what MLflow recorded, what a run's driver says now, and what the last driver left.

Whether a run that is recorded as running does run, only its cluster knows; it is asked when there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidegate import connection, registry, settings, tracking
from tidegate.console import PHASES, duration
from tidegate.errors import ClusterError
from tidegate.metrics import text
from tidegate.tracking import RunRecord
from tidegate.training.progress import Last, News, Progress, Totals, counted

ENDED = {"finished": "finished", "failed": "failed", "killed": "stopped"}
"""MLflow's words for a run that is over, and ours."""
UNKNOWN = "running?"
RESUMABLE = ("interrupted", "stopped", "failed", "paused")


@dataclass(frozen=True)
class Standing:
    """What is known of a run. `news` is its driver's, None when there is none or it does not answer.

    `unasked` says why no cluster could be asked; empty when one was, or there was no need to.
    """

    record: RunRecord
    last: Last | None
    news: News | None = None
    is_carried: bool = False
    unasked: str = ""

    @property
    def status(self) -> str:
        """A phase of the driver; finished, failed or stopped; interrupted when no driver of the cluster carries it."""
        if self.record.status in ENDED:
            return ENDED[self.record.status]
        if self.is_carried:
            return self.news.phase if self.news else "running"
        return UNKNOWN if self.unasked else "interrupted"

    @property
    def progress(self) -> Progress | None:
        """The newest that is known. A driver that has no workers yet does not know how far the run is."""
        if self.news and self.news.progress.total_steps:
            return self.news.progress
        return self.last.progress if self.last else None

    @property
    def totals(self) -> Totals:
        return self.news.totals if self.news else self.last.totals if self.last else Totals()

    @property
    def test_metrics(self) -> dict[str, float]:
        """By name, without the `test.` before it; those of single classes are left out."""
        found = {key.removeprefix("test."): value for key, value in self.record.metrics.items() if key[:5] == "test."}
        return {key: value for key, value in found.items() if "." not in key}


def all_runs() -> list[Standing]:
    """How every recorded run stands, newest first."""
    return _standings(tracking.runs())


def one_run(name: str) -> Standing:
    """How a run stands. Raises NotFoundError."""
    return _standings([tracking.run(name)])[0]


def is_over(name: str) -> bool:
    """Whether a run has ended, or no driver in this cluster carries it."""
    return one_run(name).status in (*ENDED.values(), "interrupted", UNKNOWN)


def _standings(records: list[RunRecord]) -> list[Standing]:
    carried: Mapping[str, News | None] = {}
    unasked = ""
    if any(record.status not in ENDED for record in records):
        try:
            carried = _carried()
        except ClusterError as error:
            unasked = str(error)
        # Once more: a run that ended before its cluster was asked was not interrupted.
        records = [record if record.status in ENDED else tracking.run(record.run_id) for record in records]
    return [
        Standing(
            record,
            Last.read(settings.home() / "runs" / record.name),
            carried.get(record.name),
            record.name in carried,
            unasked,
        )
        for record in records
    ]


def _carried() -> Mapping[str, News | None]:
    connection.connect()
    from tidegate.training import control

    return control.statuses()


def facts(standing: Standing) -> dict[str, Any]:
    """A run as JSON has it. What is not known, or is not so while it does not train, is null."""
    record, news, totals = standing.record, standing.news, standing.totals
    progress = standing.progress or Progress()
    known = bool(progress.total_steps)
    is_fast = standing.status == "training" and progress.rows_per_s > 0
    return {
        "run": record.name,
        "model": record.tags.get("tidegate.model"),
        "status": standing.status,
        "step": progress.step if known else None,
        "total_steps": progress.total_steps if known else None,
        "epoch": progress.epoch if known else None,
        "epochs": progress.epochs if known else None,
        "loss": progress.loss if known and math.isfinite(progress.loss) else None,
        "workers": news.progress.workers if news else None,
        "wanted": news.wanted if news else None,
        "min_workers": news.bounds[0] if news else None,
        "max_workers": news.bounds[1] if news else None,
        "samples_per_s": progress.rows_per_s if is_fast else None,
        "seconds_left": progress.seconds_left if is_fast else None,
        "waits_for": (news.note or None) if news else None,
        "resizes": totals.resizes,
        "restarts": totals.restarts,
        "pauses": totals.pauses,
        "steps_twice": totals.steps_twice,
        "training_s": totals.training_s,
        "checkpointing_s": totals.checkpointing_s,
        "restarting_s": totals.restarting_s,
        "checkpoints": totals.checkpoints,
        "started": record.started,
        "ended": record.ended if record.status in ENDED else None,
        "test": standing.test_metrics,
    }


def version_of(standing: Standing) -> str | None:
    """The model version that a run registered, as `digits@3`; None while there is none."""
    return registry.made_by(standing.record)


def short(standing: Standing) -> str:
    """`training, 2 workers`, `paused`, `finished`."""
    if standing.status == "training" and standing.news:
        return f"training, {counted(standing.news.progress.workers, 'worker')}"
    return standing.status


def described(standing: Standing, version: str | None) -> list[tuple[str, str]]:
    """A run in lines, each with its label."""
    record, totals = standing.record, standing.totals
    lines = [("run", record.name), ("status", _status(standing))]
    if standing.progress and standing.progress.total_steps:
        lines.append(("step", _where(standing.progress)))
    if standing.status == "training" and standing.progress and standing.progress.rows_per_s:
        speed, left = standing.progress.rows_per_s, duration(standing.progress.seconds_left)
        lines.append(("speed", f"{speed:,.0f} samples/s, {left} left"))
    if totals.groups:
        lines += _history(totals)
    lines.append(("started", f"{record.started[:19]} UTC"))
    if record.ended and record.status in ENDED:
        lines.append(("ended", f"{record.ended[:19]} UTC"))
    if standing.test_metrics:
        lines.append(("test", ", ".join(f"{name} {text(value)}" for name, value in standing.test_metrics.items())))
    if version:
        lines.append(("version", version))
    if remedy := _remedy(standing):
        lines.append(("to go on", remedy))
    return lines


def _status(standing: Standing) -> str:
    if standing.status == UNKNOWN:
        return f"recorded as running, but that could not be checked: {standing.unasked}"
    if standing.status == "interrupted":
        return "interrupted: no driver in this cluster carries it"
    if standing.status == "running":
        return "running, but its driver does not answer"
    news = standing.news
    if news is None:
        return standing.status
    now = PHASES[news.phase] if news.phase != "training" else short(standing)
    low, high = news.bounds
    asked = f"; {news.wanted} asked for" if news.wanted not in (None, news.progress.workers) else ""
    now += f": {news.note}" if news.note else ""
    return f"{now} (may have {low} to {high}{asked})" if low < high else now


def _where(progress: Progress) -> str:
    return (
        f"{progress.step} of {progress.total_steps}, epoch {progress.epoch} of {progress.epochs}, "
        f"loss {text(progress.loss)}"
    )


def _history(totals: Totals) -> list[tuple[str, str]]:
    changes = [counted(getattr(totals, f"{what}s"), what) for what in ("resize", "restart", "pause")]
    return [
        ("changes", f"{', '.join(changes)}; {counted(totals.steps_twice, 'step')} computed twice"),
        (
            "time",
            f"{duration(totals.training_s)} training, {duration(totals.checkpointing_s)} checkpointing, "
            f"{duration(totals.restarting_s)} restarting",
        ),
        ("checkpoints", f"{totals.checkpoints} written"),
    ]


def _remedy(standing: Standing) -> str:
    return f"tidegate resume {standing.record.name}" if standing.status in RESUMABLE else ""
