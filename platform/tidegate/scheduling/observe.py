"""Looking at the cluster: what Serve, the runs and everybody else hold and want, on which node."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from tidegate import ray_internals
from tidegate.scheduling.snapshot import Deployment, Node, Resources, Run, RunPhase, Snapshot
from tidegate.scheduling.waiting import Waiting
from tidegate.serving.applications import is_ours
from tidegate.spec.capacity import CapacityRules
from tidegate.spec.endpoint import Capacity
from tidegate.training import control
from tidegate.training.claim import Claim

ANSWER_S = 2.0
STUCK_S = 60.0
"""A run that has not changed its size for so long is not counted on: others give instead."""
REMEMBERED_S = 15.0
GONE = ("STOPPING", "STOPPED")
Count = Callable[[Sequence[str], Resources], int]


class Observer:
    """Makes snapshots, and remembers since when things are as they are."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting = Waiting(clock)
        self._since: dict[str, float] = {}
        self._calm_since = clock()
        self._before: Any = None
        self._claims: dict[str, tuple[float, Claim]] = {}

    def look(self, rules: CapacityRules) -> Snapshot:
        """The cluster as it is now."""
        # Runs first: what is free changes later than what they say, so that nothing is counted twice.
        claims = control.claims(ANSWER_S)
        details = ray_internals.serve_details() if ray_internals.serve_is_running() else {}
        waiting = ray_internals.waiting_demand()
        return self.snapshot(nodes(), details, claims, rules, waiting, can_grow=ray_internals.can_grow())

    def snapshot(
        self,
        nodes: tuple[Node, ...],
        details: Mapping[str, Any],
        claims: Mapping[str, Claim | None],
        rules: CapacityRules,
        waiting: Counter[ray_internals.Shape] | None = None,
        *,
        can_grow: bool,
    ) -> Snapshot:
        """From what was answered; apart from the cluster that answers."""
        self._waiting.look(waiting, nodes)
        found = deployments(details, rules.serving.headroom, self._waiting.count)
        deployed = tuple(self._dated(deployment) for deployment in found)
        runs = tuple(self._run(claim, rules) for claim in self._remembered(claims))
        self._forget({each.name for each in deployed} | claims.keys() | {f"{name} waits" for name in claims})
        return Snapshot(nodes, deployed, runs, calm_s=self._calm(nodes, deployed), can_grow=can_grow)

    def _dated(self, deployment: Deployment) -> Deployment:
        seconds = self._held(deployment.name, deployment.pending > 0)
        return Deployment(**{**vars(deployment), "pending_s": seconds})

    def _run(self, claim: Claim, rules: CapacityRules) -> Run:
        wish, named = claim.wish, rules.priorities
        stuck = self._held(wish.run, claim.standing == "changing") > STUCK_S
        waits_s = self._held(f"{wish.run} waits", claim.standing == "queued")
        return Run(
            wish.run,
            wish.need,
            wish.low,
            claim.high,
            nodes=claim.nodes,
            phase=_phase(claim, stuck=stuck),
            given=claim.given or 0,
            priority=named.get(wish.run, named.get(wish.model, wish.priority)),
            waits_s=waits_s,
            since=wish.since,
            changed_s=claim.changed_s,
            resize_s=claim.resize_s,
            feed_cpus=wish.feed_cpus,
        )

    def _remembered(self, claims: Mapping[str, Claim | None]) -> list[Claim]:
        """What each run says, and of one that does not answer in time what it said a moment ago."""
        now = self._clock()
        kept = {name: (at, claim) for name, (at, claim) in self._claims.items() if name in claims}
        self._claims = kept | {name: (now, claim) for name, claim in claims.items() if claim is not None}
        return [claim for at, claim in self._claims.values() if now - at < REMEMBERED_S]

    def _held(self, name: str, is_so: bool) -> float:
        """Seconds since something is so."""
        if not is_so:
            self._since.pop(name, None)
            return 0.0
        return self._clock() - self._since.setdefault(name, self._clock())

    def _forget(self, names: set[str]) -> None:
        self._since = {name: since for name, since in self._since.items() if name in names}

    def _calm(self, nodes: tuple[Node, ...], deployments: tuple[Deployment, ...]) -> float:
        now = {node.id for node in nodes if not node.leaves}, {d.name: (d.running, d.pending) for d in deployments}
        if now != self._before:
            self._before, self._calm_since = now, self._clock()
        return self._clock() - self._calm_since


def nodes() -> tuple[Node, ...]:
    """The living nodes, and what is free on each."""
    free, leaving = ray_internals.free_by_node(), ray_internals.draining_nodes()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return tuple(
        Node(node["NodeID"], node["Resources"], free.get(node["NodeID"], {}), node["NodeID"] in leaving)
        for node in alive
    )


def deployments(
    details: Mapping[str, Any], headroom: int, count: Count = lambda names, _: len(names)
) -> list[Deployment]:
    """All deployments of all applications, from Serve's own account.

    `count` tells how many of the replicas of which Serve knows no node hold nothing: all, without it.
    """
    found = []
    for application, about in details.get("applications", {}).items():
        for name, deployment in about.get("deployments", {}).items():
            replicas = [r for r in deployment["replicas"] if r["state"] not in GONE]
            need = {kind: float(amount) for kind, amount in deployment["required_resources"].items() if amount}
            has_failed = about["status"] == "DEPLOY_FAILED"
            running = _nodes_of(replicas)
            leaving = _nodes_of([r for r in deployment["replicas"] if r["state"] == "STOPPING"])
            target = int(deployment["target_num_replicas"])
            config = deployment["deployment_config"]
            scaling = config.get("autoscaling_config") or {}
            asked = _asked(application, config)
            wanted = asked.headroom_replicas if asked.headroom_replicas is not None else headroom
            found.append(
                Deployment(
                    f"{application}/{name}",
                    need,
                    running,
                    leaving,
                    pending=0 if has_failed else _pending(replicas, target, need, count),
                    headroom=max(0, min(wanted, int(scaling.get("max_replicas") or 0) - target)),
                    priority=asked.priority,
                )
            )
    return found


def _pending(replicas: Sequence[Mapping[str, Any]], target: int, need: Resources, count: Count) -> int:
    """Replicas that are wanted and hold nothing. Of a rolling update there are more than the target says."""
    nowhere = [r["replica_id"] for r in replicas if not r.get("node_id") and r["state"] != "RECOVERING"]
    return count(nowhere, need) + max(0, target - len(replicas))


def _nodes_of(replicas: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted(replica["node_id"] for replica in replicas if replica.get("node_id")))


def _asked(application: str, config: Mapping[str, Any]) -> Capacity:
    """What an endpoint's spec says; other people's applications say nothing."""
    said = (config.get("user_config") or {}).get("capacity") if is_ours(application) else None
    return Capacity.model_validate(said) if said else Capacity()


def _phase(claim: Claim, *, stuck: bool) -> RunPhase:
    if claim.standing == "changing" and not stuck and claim.given is not None:
        return "changing"
    if claim.standing == "training" and claim.nodes:
        return "training"
    return "queued" if claim.standing == "queued" else "ending"
