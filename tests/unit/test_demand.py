"""What is asked of the cluster's autoscaler."""

from __future__ import annotations

from tidegate.scheduling.demand import demand
from tidegate.scheduling.policy import decide
from tidegate.scheduling.snapshot import Deployment, Node, Run, Snapshot
from tidegate.spec.capacity import CapacityRules

CPU, GPU = {"CPU": 1.0}, {"GPU": 1.0, "CPU": 1.0}


def asked(*nodes: Node, deployments: tuple[Deployment, ...] = (), runs: tuple[Run, ...] = ()) -> list[dict[str, float]]:
    snapshot = Snapshot(nodes, deployments, runs, can_grow=True)
    return demand(snapshot, decide(snapshot, CapacityRules()))


def test_a_run_that_waits_asks_for_its_fewest_workers() -> None:
    busy = Node("a", {"GPU": 1.0, "CPU": 4.0}, {"CPU": 4.0})
    waiting = Run("late", GPU, 2, 8, phase="queued", feed_cpus=1)
    assert asked(busy, runs=(waiting,)) == [{"GPU": 1.0}, GPU, GPU, {"CPU": 1}]


def test_a_run_that_starts_and_one_that_could_grow_ask_for_nothing() -> None:
    node = Node("a", {"CPU": 4.0}, {"CPU": 1.0})
    growing = Run("growing", CPU, 1, 8, nodes=("a", "a", "a"))
    starting = Run("starting", CPU, 1, 8, phase="queued")
    assert asked(node, runs=(growing, starting)) == []


def test_what_others_hold_is_named_too() -> None:
    """The autoscaler compares with all there is: without it, what is held would count as free."""
    node = Node("a", {"CPU": 8.0, "memory": 9.0, "node:10.0.0.1": 1.0}, {"CPU": 2.0, "memory": 1.0})
    served = Deployment("app/model", CPU, ("a", "a"))
    training = Run("digits-1", CPU, 1, 3, nodes=("a", "a", "a"))
    assert asked(node, deployments=(served,), runs=(training,)) == [CPU, CPU, {"CPU": 1.0}]


def test_what_a_run_s_own_controller_asks_for_is_not_asked_twice() -> None:
    """It lost its workers: its controller is still there and asks for what it was given."""
    node = Node("a", {"CPU": 1.0}, {})
    lost = Run("lost", CPU, 2, 4, phase="queued", given=2)
    assert asked(node, runs=(lost,)) == [{"CPU": 1.0}]
