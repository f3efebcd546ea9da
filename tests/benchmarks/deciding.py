"""How long the arbiter thinks: `decide` on 4,000 devices, 200 endpoints and 200 runs, wanted under 100 ms (median).

Nodes of eight GPUs. Endpoints hold halves, ones and twos; runs hold between one and sixteen GPUs each and all else.
Seeded: how things are is the same at every call. Measured are a calm moment, a rush (every endpoint wants one replica
more, so that every run has to give) and the minute after it, when everybody may grow again.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from dataclasses import replace

from tidegate.scheduling.policy import decide
from tidegate.scheduling.snapshot import Deployment, Node, Run, Snapshot
from tidegate.spec.capacity import CapacityRules

WANTED_MS = 100.0
NODES, GPUS, ENDPOINTS, RUNS = 500, 8, 200, 200
REPEATED = 15


def main() -> int:
    calm = cluster(random.Random(7))
    rush = replace(calm, deployments=tuple(replace(each, pending=1) for each in calm.deployments), calm_s=0.0)
    after = replace(calm, nodes=tuple(replace(node, free=half_free(node)) for node in calm.nodes))
    reached = [measured(name, moment) for name, moment in (("calm", calm), ("rush", rush), ("after", after))]
    return 0 if all(reached) else 1


def cluster(luck: random.Random) -> Snapshot:
    """A cluster on which runs have what endpoints leave over."""
    free = {f"node-{number}": float(GPUS) for number in range(NODES)}
    deployments = []
    for number in range(ENDPOINTS):
        need = luck.choice([0.5, 1.0, 2.0])
        places = taken(luck, free, need, luck.randint(1, 6))
        deployments.append(Deployment(f"endpoint-{number}", {"GPU": need}, places))
    runs = []
    for number in range(RUNS):
        places = taken(luck, free, 1.0, luck.randint(1, 16))
        high = luck.randint(max(1, len(places)), 32)
        runs.append(Run(f"run-{number}", {"GPU": 1.0}, 1, high, places, priority=luck.randint(0, 3), since=number))
    nodes = (Node(name, {"GPU": float(GPUS), "CPU": 64.0}, {"GPU": left, "CPU": 64.0}) for name, left in free.items())
    return Snapshot(tuple(nodes), tuple(deployments), tuple(runs))


def taken(luck: random.Random, free: dict[str, float], need: float, count: int) -> tuple[str, ...]:
    """Places on nodes that have them."""
    found = []
    for name in luck.sample(list(free), len(free)):
        while free[name] >= need and len(found) < count:
            free[name] -= need
            found.append(name)
    return tuple(found)


def half_free(node: Node) -> dict[str, float]:
    return {"GPU": min(node.total["GPU"], node.free["GPU"] + 4.0), "CPU": 64.0}


def measured(name: str, moment: Snapshot) -> bool:
    """Print the median time of a decision; whether it is as wanted."""
    rules, seconds = CapacityRules(), []
    for _ in range(REPEATED):
        began = time.perf_counter()
        decide(moment, rules)
        seconds.append(time.perf_counter() - began)
    median = 1000 * statistics.median(seconds)
    reached = median < WANTED_MS
    verdict = "reached" if reached else "MISSED"
    slowest = 1000 * max(seconds)
    print(f"deciding, {name}: median {median:.1f} ms, slowest {slowest:.1f} ms, wanted {WANTED_MS:g}: {verdict}")
    return reached


if __name__ == "__main__":
    sys.exit(main())
