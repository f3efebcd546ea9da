"""What the cluster's autoscaler should find places for. Ray sees by itself only what waits for a place."""

from __future__ import annotations

from tidegate.scheduling.policy import Decision
from tidegate.scheduling.snapshot import Snapshot
from tidegate.scheduling.table import EPSILON

COUNTED_BY_RAY = ("node:", "memory", "object_store_memory")


def demand(snapshot: Snapshot, decision: Decision) -> list[dict[str, float]]:
    """Bundles that must have places at once: what is held by others than runs, and the least of runs that wait.

    The workers that runs have are asked for by the runs' own controllers, and replicas that wait by Serve. What is
    asked for is compared with all there is, not with what is free: so what is held must be named too. Nothing is asked
    for so that a run could grow: it grows into what is idle.
    """
    found = [dict(each.need) for each in snapshot.deployments for _ in each.running]
    found += _others(snapshot)
    for run in snapshot.runs:
        if run.name in decision.queue and not run.given:
            found += [dict(run.need)] * run.low
            found += [{"CPU": run.feed_cpus}] if run.feed_cpus else []
    return [bundle for bundle in found if bundle]


def _others(snapshot: Snapshot) -> list[dict[str, float]]:
    """What is held on each node by neither replicas nor workers."""
    held = {
        node.id: {kind: total - node.free.get(kind, 0.0) for kind, total in node.total.items()}
        for node in snapshot.nodes
    }
    for part, nodes in [(each, each.running) for each in snapshot.deployments] + [(r, r.nodes) for r in snapshot.runs]:
        for node_id in nodes:
            for kind, amount in part.need.items():
                if kind in held.get(node_id, {}):
                    held[node_id][kind] -= amount
    return [
        {kind: amount for kind, amount in kinds.items() if amount > EPSILON and not kind.startswith(COUNTED_BY_RAY)}
        for kinds in held.values()
    ]
