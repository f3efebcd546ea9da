"""What the arbiter knows, for people: who has what, who waits for what, and why things were decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tidegate.scheduling.policy import Decision, places
from tidegate.scheduling.snapshot import Resources, Snapshot
from tidegate.scheduling.timeline import Sample

EVENTS = 12
"""How many decisions a report tells in words."""


@dataclass(frozen=True)
class Event:
    """A decision: when, in seconds since the epoch, about whom, and why."""

    at: float
    who: str
    what: str

    def __str__(self) -> str:
        return f"{datetime.fromtimestamp(self.at, UTC).astimezone():%H:%M:%S}  {self.who}: {self.what}"


@dataclass(frozen=True)
class Holder:
    """Who has places, and how many more are wanted."""

    name: str
    kind: str
    has: int
    wants: int
    need: Resources
    note: str = ""


@dataclass(frozen=True)
class Report:
    """How capacity is shared. `timeline` counts devices of the kind `device`; `trouble` is what keeps rules unread."""

    device: str
    holders: Sequence[Holder] = ()
    queue: Sequence[str] = ()
    events: Sequence[Event] = ()
    timeline: Sequence[Sample] = ()
    rules: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""

    def explain(self) -> str:
        """In words: a line for each holder, then the queue, then the last decisions."""
        lines = [self._now()]
        lines += [f"  {holder.kind:<8} {holder.name}: {has}" for holder in self.holders if (has := _has(holder))]
        lines += [f"{place}. in the queue: {name}" for place, name in enumerate(self.queue, start=1)]
        lines += [str(event) for event in self.events[-EVENTS:]]
        return "\n".join(lines + ([self.trouble] if self.trouble else []))

    def plot(self, path: str | Path) -> None:
        """Draw the timeline as a PNG file."""
        from tidegate import pictures

        pictures.devices(self.timeline, self.device, Path(path))

    def _now(self) -> str:
        if not self.timeline:
            return f"no {self.device} seen yet"
        now = self.timeline[-1]
        return (
            f"{now.total:g} {self.device}: {now.training:g} training, {now.serving:g} serving, "
            f"{now.changing:g} changing, {now.other:g} others, {now.free:g} free"
        )


def _has(holder: Holder) -> str:
    wants = f", wants {holder.wants} more" if holder.wants else ""
    return f"{places(holder.has, holder.need)}{wants}{f' ({holder.note})' if holder.note else ''}"


def holders(snapshot: Snapshot, decision: Decision) -> list[Holder]:
    """Deployments and runs, with what is missing to what they want."""
    serving = [
        Holder(each.name, "serving", len(each.running), each.pending, each.need, decision.reasons.get(each.name, ""))
        for each in snapshot.deployments
    ]
    training = [
        Holder(
            run.name,
            "training",
            len(run.nodes),
            max(0, run.high - len(run.nodes)),
            run.need,
            decision.reasons.get(run.name, ""),
        )
        for run in snapshot.runs
    ]
    return serving + training
