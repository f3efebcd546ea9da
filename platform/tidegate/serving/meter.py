"""What a replica counts of its requests and passes. Plain numbers: whoever shows them reads them now and then."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_KEPT = 100_000
_NS = 1_000_000_000


@dataclass(slots=True)
class Total:
    """How often, and how long in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def to_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": int(self.seconds * _NS)}


@dataclass(slots=True)
class Traffic:
    """The requests of one tenant."""

    statuses: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    rows: int = 0
    device_seconds: float = 0.0
    """Its share, by rows, of the passes that answered it."""


class Meter:
    """Counts since the replica's start; all calls come from one event loop.

    `latencies`, `queued` and `batches` are what came since somebody took them away.
    """

    def __init__(self) -> None:
        self.traffic: defaultdict[str, Traffic] = defaultdict(Traffic)
        self.passes: defaultdict[int, Total] = defaultdict(Total)
        """By rows of the pass."""
        self.success, self.fail = Total(), Total()
        self.queue, self.read, self.compute, self.write = Total(), Total(), Total(), Total()
        self.rows = 0
        self.last_ms = 0
        self.latencies: deque[tuple[str, float]] = deque(maxlen=MOST_KEPT)
        self.queued: deque[float] = deque(maxlen=MOST_KEPT)
        self.batches: deque[int] = deque(maxlen=MOST_KEPT)

    def answered(self, tenant: str, status: int, seconds: float) -> None:
        """An inference request has been answered, whatever came of it."""
        self.traffic[tenant].statuses[status] += 1
        self.latencies.append((tenant, seconds))
        (self.success if status < 400 else self.fail).add(seconds)

    def computed(
        self, tenant: str, rows: int, device: float, *, read: float, queue: float, compute: float, write: float
    ) -> None:
        """Where the time of a request went that the model answered, in seconds; `device`: its share of the pass."""
        self.read.add(read)
        self.queue.add(queue)
        self.compute.add(compute)
        self.write.add(write)
        self.queued.append(queue)
        self.rows += rows
        traffic = self.traffic[tenant]
        traffic.rows += rows
        traffic.device_seconds += device
        self.last_ms = time.time_ns() // 1_000_000

    def passed(self, rows: int, seconds: float) -> None:
        self.passes[rows].add(seconds)
        self.batches.append(rows)

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """In the form of the protocol's statistics extension (Triton's); of this replica alone."""
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": sum(total.count for total in self.passes.values()),
            "inference_stats": {
                "success": self.success.to_json(),
                "fail": self.fail.to_json(),
                "queue": self.queue.to_json(),
                "compute_input": self.read.to_json(),
                "compute_infer": self.compute.to_json(),
                "compute_output": self.write.to_json(),
            },
            "batch_stats": [
                {"batch_size": rows, "compute_infer": total.to_json()} for rows, total in sorted(self.passes.items())
            ],
        }


def summed(statistics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of several replicas as those of one; at least one is given."""
    passes: defaultdict[int, list[dict[str, int]]] = defaultdict(list)
    for each in statistics:
        for entry in each["batch_stats"]:
            passes[entry["batch_size"]].append(entry["compute_infer"])
    kinds = statistics[0]["inference_stats"]
    return {
        "name": statistics[0]["name"],
        "version": statistics[0]["version"],
        "last_inference": max(each["last_inference"] for each in statistics),
        "inference_count": sum(each["inference_count"] for each in statistics),
        "execution_count": sum(each["execution_count"] for each in statistics),
        "inference_stats": {kind: _sum([each["inference_stats"][kind] for each in statistics]) for kind in kinds},
        "batch_stats": [{"batch_size": rows, "compute_infer": _sum(totals)} for rows, totals in sorted(passes.items())],
    }


def _sum(totals: Sequence[dict[str, int]]) -> dict[str, int]:
    return {key: sum(total[key] for total in totals) for key in ("count", "ns")}
