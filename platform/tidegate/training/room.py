"""Room for a run: as many workers as the cluster can spare when it starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import ray

from tidegate.errors import ClusterError
from tidegate.spec.train import Workers

FEED_CPUS = 1
"""Kept free of workers for the feed's map step, which could not run otherwise."""
TOLD_EVERY_S = 10.0


def workers(wanted: Workers, say: Callable[[str], None]) -> tuple[int, int]:
    """The bounds, with the maximum lowered to what is free now: Ray Train does not see what Serve and others hold.

    Waits, and says so, while not even the minimum fits. Raises ClusterError when it never can.
    """
    told = 0.0
    while True:
        room = free_workers(ray.available_resources(), wanted.cpu)
        if room >= wanted.min:
            return wanted.min, min(wanted.max, room)
        ever = free_workers(ray.cluster_resources(), wanted.cpu)
        if ever < wanted.min:
            raise ClusterError(
                f"the run needs {wanted.min} workers of {wanted.cpu} CPUs and {FEED_CPUS} CPU for its feed; "
                f"the cluster has {ray.cluster_resources().get('CPU', 0):g} CPUs in all",
                remedy="lower train.workers, or add nodes",
            )
        if time.monotonic() - told > TOLD_EVERY_S:
            told = time.monotonic()
            free = ray.available_resources().get("CPU", 0)
            say(f"waiting for {wanted.min * wanted.cpu + FEED_CPUS} CPUs: {free:g} are free")
        time.sleep(0.5)


def free_workers(resources: dict[str, float], cpu: int) -> int:
    return max(0, math.floor((resources.get("CPU", 0) - FEED_CPUS) / cpu))
