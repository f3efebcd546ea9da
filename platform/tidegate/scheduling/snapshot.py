"""What the arbiter sees of a cluster at one moment: plain values, made by observe.py or by a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Resources = Mapping[str, float]
RunPhase = Literal["queued", "training", "changing", "ending"]
"""Without workers and willing to start; working; on its way to another size; not to be counted on."""


@dataclass(frozen=True)
class Node:
    """`free` is held by nobody. A node that `leaves` takes no more."""

    id: str
    total: Resources
    free: Resources
    leaves: bool = False


@dataclass(frozen=True)
class Deployment:
    """A deployment of a Serve application, whoever deployed it."""

    name: str
    need: Resources
    """Of one replica."""
    running: tuple[str, ...] = ()
    """The node of each replica that holds what it needs."""
    leaving: tuple[str, ...] = ()
    """The same of those that answer their last requests."""
    pending: int = 0
    """Replicas that its autoscaler wants and that hold nothing yet."""
    pending_s: float = 0.0
    """For how long it has waited for some."""
    headroom: int = 0
    """Replicas for which room is kept beyond those it wants."""
    priority: int = 0


@dataclass(frozen=True)
class Run:
    """A training run of Tidegate."""

    name: str
    need: Resources
    """Of one worker."""
    low: int
    high: int
    """The most workers it takes: what its spec allows, or what a person asked for last."""
    nodes: tuple[str, ...] = ()
    """The node of each of its workers."""
    phase: RunPhase = "training"
    given: int = 0
    """The size it is on its way to, while it is changing."""
    priority: int = 0
    waits_s: float = 0.0
    """For how long it has been queued."""
    since: float = 0.0
    """When it was submitted, in seconds since the epoch."""
    changed_s: float = float("inf")
    """Seconds since it last changed its size."""
    resize_s: float = 5.0
    """Seconds without a step that a change of its size costs."""
    feed_cpus: float = 0.0
    """CPUs that it needs somewhere besides its workers."""


@dataclass(frozen=True)
class Snapshot:
    nodes: tuple[Node, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    runs: tuple[Run, ...] = ()
    calm_s: float = float("inf")
    """Seconds since serving last wanted something that was not there, or since nodes came or went."""
    can_grow: bool = False
    """Whether there is an autoscaler that may add nodes."""
