"""What a run asks of the cluster and holds of it: all that the arbiter goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Standing = Literal["queued", "training", "changing", "away"]
"""Waits for room; trains; on its way to another size; wants nothing now: it prepares, ends, or a person paused it."""


@dataclass(frozen=True)
class Wish:
    """What does not change while a driver lives."""

    run: str
    model: str
    need: Mapping[str, float]
    """Of one worker."""
    low: int
    high: int
    priority: int = 0
    feed_cpus: int = 0
    since: float = 0.0
    """When its driver began, in seconds since the epoch."""


@dataclass(frozen=True)
class Claim:
    """A run as it stands now."""

    wish: Wish
    standing: Standing
    high: int
    """The most it takes: a person may have asked for fewer than its spec allows."""
    given: int | None
    """The size the arbiter gave it last; None where it has given none."""
    nodes: tuple[str, ...]
    """The node of each of its workers."""
    changed_s: float
    """Seconds since its size changed."""
    resize_s: float
    """Seconds without a step that a change of its size took so far, in the mean."""
