"""Devices over time: who held how many of them, moment by moment."""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.scheduling.snapshot import Deployment, Snapshot


@dataclass(frozen=True)
class Sample:
    """Devices of one kind at one moment. `changing` are held for workers and replicas that are about to start."""

    at: float
    training: float
    serving: float
    changing: float
    other: float
    free: float

    @property
    def total(self) -> float:
        return self.training + self.serving + self.changing + self.other + self.free


def device_of(snapshot: Snapshot) -> str:
    """The kind that the timeline counts: GPUs where there are any."""
    return "GPU" if any(node.total.get("GPU") for node in snapshot.nodes) else "CPU"


def sample(snapshot: Snapshot, at: float) -> Sample:
    """How the devices are shared now."""
    device = device_of(snapshot)
    total = sum(node.total.get(device, 0.0) for node in snapshot.nodes)
    free = sum(node.free.get(device, 0.0) for node in snapshot.nodes)
    # What is free was looked at last: workers may have gone since their run was asked.
    serving = min(total - free, sum(_held(each) * each.need.get(device, 0.0) for each in snapshot.deployments))
    training = min(total - free - serving, sum(len(run.nodes) * run.need.get(device, 0.0) for run in snapshot.runs))
    starting = sum(each.pending * each.need.get(device, 0.0) for each in snapshot.deployments)
    starting += sum(run.given * run.need.get(device, 0.0) for run in snapshot.runs if not run.nodes)
    rest = total - free - training - serving
    return Sample(at, training, serving, min(rest, starting), max(0.0, rest - starting), free)


def _held(deployment: Deployment) -> int:
    return len(deployment.running) + len(deployment.leaving)
