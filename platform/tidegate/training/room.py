"""Room for a run: how many workers fit where."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import ray

from tidegate import ray_internals
from tidegate.errors import ClusterError
from tidegate.spec.data import Data
from tidegate.spec.train import Workers

HEARD_AFTER_S = 3.0
TOLD_EVERY_S, REPEATED_EVERY_S = 10.0, 60.0
"""How often at most waiting is told of: with other words, and with the same."""
Resources = Mapping[str, float]


def needs(workers: Workers) -> dict[str, float]:
    """What one worker takes."""
    found: dict[str, float] = {"CPU": workers.cpu}
    if workers.gpu:
        found["GPU"] = workers.gpu
    if workers.accelerator:
        found[f"accelerator_type:{workers.accelerator}"] = 0.001
    return found


def has_real_gpus() -> bool:
    """Whether Ray found GPUs by itself: it knows their type then. Those of `--num-gpus` alone are only numbers."""
    return any(kind.startswith("accelerator_type:") for kind in ray.cluster_resources())


def feed_cpus(data: Data) -> int:
    """CPUs that no worker may take: the `ray_data` feed's map step could not run otherwise."""
    return 1 if data.resolved_feed == "ray_data" else 0


def free_nodes() -> dict[str, dict[str, float]]:
    """What is free on each node that is to stay."""
    leaving = ray_internals.draining_nodes()
    return {node: dict(free) for node, free in ray_internals.free_by_node().items() if node not in leaving}


def fitting(nodes: Mapping[str, Resources], need: Resources, *, spare_cpus: int) -> int:
    """How many workers fit on the nodes, each on one of them, with so many CPUs left over anywhere."""
    count = sum(
        max(0, math.floor(min(have.get(kind, 0) / amount for kind, amount in need.items()) + 1e-9))
        for have in nodes.values()
    )
    cpus = sum(have.get("CPU", 0) for have in nodes.values()) - spare_cpus
    return max(0, min(count, math.floor(cpus / need["CPU"] + 1e-9)))


def wait(
    wanted: Workers,
    spare_cpus: int,
    say: Callable[[str], None],
    given_up: Callable[[], bool],
    allowed: Callable[[], float] = lambda: math.inf,
) -> int:
    """How many workers fit now and are `allowed()`, once it is the minimum. Says so while it is not.

    Returns 0 when `given_up()`. Raises ClusterError when the minimum can never fit.
    """
    need, told, said, asked = needs(wanted), -REPEATED_EVERY_S, "", time.monotonic()
    while not given_up():
        room = fitting(free_nodes(), need, spare_cpus=spare_cpus)
        most = min(room, wanted.max, allowed())
        if most >= wanted.min:
            return int(most)
        _refuse_impossible(wanted, spare_cpus)
        is_next = room >= wanted.min
        # Who gives runs their sizes is given a moment.
        if not is_next or time.monotonic() - asked > HEARD_AFTER_S:
            why = "others go first, see `tidegate capacity`" if is_next else f"there is room for {room}"
            line = f"waiting for room for {_named(wanted, spare_cpus)}: {why}"
            if time.monotonic() - told > (REPEATED_EVERY_S if line == said else TOLD_EVERY_S):
                told, said = time.monotonic(), line
                say(line)
        time.sleep(0.5)
    return 0


def _refuse_impossible(wanted: Workers, spare_cpus: int) -> None:
    """How far a cluster can grow nobody tells; one that can is waited for."""
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    if fitting(nodes, needs(wanted), spare_cpus=spare_cpus) < wanted.min and not ray_internals.can_grow():
        total = ray.cluster_resources()
        held = ", ".join(f"{total.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU") if kind == "CPU" or wanted.gpu)
        raise ClusterError(
            f"the run needs {_named(wanted, spare_cpus)}; the cluster has {held} in all",
            remedy="lower train.workers, or add nodes",
        )


def _named(wanted: Workers, spare_cpus: int) -> str:
    one = " and ".join(f"{amount:g} {kind}" for kind, amount in needs(wanted).items() if ":" not in kind)
    feed = f", and {spare_cpus} CPU for the feed" if spare_cpus else ""
    return f"{wanted.min} worker{'s' * (wanted.min != 1)} of {one} each{feed}"
