"""From what Serve, the runs and the nodes say to a snapshot; no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tidegate.scheduling.observe import STUCK_S, Observer, deployments
from tidegate.scheduling.snapshot import Node, Resources, Snapshot
from tidegate.spec.capacity import CapacityRules
from tidegate.training.claim import Claim, Standing, Wish

NODES = (Node("a", {"CPU": 4.0}, {"CPU": 2.0}),)


def replica(state: str, node: str | None = None, name: str = "r") -> dict[str, Any]:
    return {"state": state, "node_id": node, "replica_id": name}


def details(
    target: int,
    *replicas: dict[str, Any],
    most: int | None = None,
    app: str = "app",
    config: dict[str, Any] | None = None,
    status: str = "RUNNING",
) -> dict[str, Any]:
    """Serve's account of one application with one deployment."""
    scaling = {"max_replicas": most} if most else None
    model = {
        "target_num_replicas": target,
        "replicas": list(replicas),
        "required_resources": {"CPU": 1, "GPU": 0},
        "deployment_config": {"autoscaling_config": scaling, "user_config": config},
    }
    return {"applications": {app: {"status": status, "deployments": {"model": model}}}}


def claim(standing: Standing = "training", *nodes: str, given: int | None = 2, run: str = "digits-1") -> Claim:
    return Claim(Wish(run, "digits", {"CPU": 1}, 1, 4, priority=1), standing, 4, given, nodes, 50.0, 4.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """An observer, and what it is shown."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.observer = Observer(self.clock)

    def see(self, serve: dict[str, Any] | None = None, *claims: Claim, rules: CapacityRules | None = None) -> Snapshot:
        known = {each.wish.run: each for each in claims}
        return self.observer.snapshot(NODES, serve or {}, known, rules or CapacityRules(), can_grow=False)


def test_replicas_that_hold_a_place_are_told_from_those_that_wait() -> None:
    serve = details(4, replica("RUNNING", "a"), replica("STARTING", "a"), replica("STARTING"), replica("STOPPING", "a"))
    (found,) = deployments(serve, headroom=0)
    assert (found.name, found.running, found.pending) == ("app/model", ("a", "a"), 2)
    assert found.need == {"CPU": 1.0}


def test_whether_replicas_without_a_node_wait_is_asked_once_for_all() -> None:
    asked = []

    def count(names: Sequence[str], need: Resources) -> int:
        asked.append((list(names), dict(need)))
        return 1

    serve = details(4, replica("RUNNING", "a"), replica("STARTING", name="b"), replica("STARTING", name="c"))
    (found,) = deployments(serve, 0, count)
    assert asked == [(["b", "c"], {"CPU": 1.0})]
    assert found.pending == 1 + 1


def test_replicas_of_a_rolling_update_wait_though_there_are_enough() -> None:
    (found,) = deployments(details(2, replica("RUNNING", "a"), replica("RUNNING", "a"), replica("STARTING")), 0)
    assert found.pending == 1


def test_replicas_that_a_restarted_controller_finds_again_do_not_wait() -> None:
    (found,) = deployments(details(2, replica("RECOVERING"), replica("RECOVERING")), 0)
    assert found.pending == 0


def test_nothing_is_kept_for_a_deployment_that_has_failed() -> None:
    (found,) = deployments(details(2, status="DEPLOY_FAILED"), 0)
    assert found.pending == 0


def test_replicas_that_answer_their_last_requests_still_hold_their_places() -> None:
    (found,) = deployments(details(1, replica("RUNNING", "a"), replica("STOPPING", "a"), replica("STOPPED", "a")), 0)
    assert (found.running, found.leaving, found.pending) == (("a",), ("a",), 0)


def test_an_endpoint_of_ours_says_what_it_wants_itself() -> None:
    said = {"capacity": {"priority": 3, "headroom_replicas": 1}}
    (ours,) = deployments(details(1, most=8, app="tidegate.digits", config=said), headroom=2)
    (theirs,) = deployments(details(1, most=8, app="theirs", config=said), headroom=2)
    assert (ours.priority, ours.headroom) == (3, 1)
    assert (theirs.priority, theirs.headroom) == (0, 2)


@pytest.mark.parametrize(("most", "headroom"), [(8, 2), (3, 1), (2, 0), (None, 0)])
def test_headroom_is_for_replicas_that_there_may_be(most: int | None, headroom: int) -> None:
    (found,) = deployments(details(2, most=most), headroom=2)
    assert found.headroom == headroom


@pytest.mark.parametrize(
    ("standing", "nodes", "given", "phase"),
    [
        ("training", ("a", "a"), 2, "training"),
        ("training", (), 2, "ending"),
        ("changing", ("a",), 2, "changing"),
        ("changing", ("a",), None, "ending"),
        ("queued", (), None, "queued"),
        ("away", (), None, "ending"),
    ],
)
def test_a_run_is_counted_on_as_far_as_it_says_enough(
    standing: Standing, nodes: tuple[str, ...], given: int | None, phase: str
) -> None:
    (run,) = Watched().see(None, claim(standing, *nodes, given=given)).runs
    assert (run.phase, run.nodes, run.low, run.high) == (phase, nodes, 1, 4)


def test_a_run_that_does_not_get_on_with_its_change_is_not_counted_on() -> None:
    watched = Watched()
    changing = claim("changing", "a", "a", given=1)
    assert watched.see(None, changing).runs[0].phase == "changing"
    watched.clock.now += STUCK_S + 1
    assert watched.see(None, changing).runs[0].phase == "ending"
    assert watched.see(None, claim("training", "a", given=1)).runs[0].phase == "training"
    assert watched.see(None, changing).runs[0].phase == "changing"


def test_priorities_are_the_rules_the_runs_the_models_and_then_the_specs() -> None:
    def priority(**named: int) -> int:
        rules = CapacityRules(priorities={name.replace("_", "-"): value for name, value in named.items()})
        return Watched().see(None, claim("queued"), rules=rules).runs[0].priority

    assert priority() == 1
    assert priority(digits=5) == 5
    assert priority(digits=5, digits_1=7) == 7


def test_calm_begins_when_nothing_moves_also_beside_a_replica_that_nobody_can_place() -> None:
    watched = Watched()
    running = replica("RUNNING", "a")

    def calm(seconds: float, serve: dict[str, Any]) -> float:
        watched.clock.now += seconds
        return watched.see(serve).calm_s

    assert calm(0, details(1, running)) == 0
    assert calm(5, details(1, running)) == 5
    assert calm(1, details(2, running)) == 0
    assert calm(9, details(2, running)) == 9
    assert calm(1, details(2, running, running)) == 0
    assert calm(3, details(2, running, running)) == 3
    assert calm(1, details(1, running)) == 0


def test_how_long_a_deployment_waits() -> None:
    watched = Watched()
    assert watched.see(details(1)).deployments[0].pending_s == 0
    watched.clock.now += 4
    assert watched.see(details(1)).deployments[0].pending_s == 4
    assert watched.see(details(1, replica("RUNNING", "a"))).deployments[0].pending_s == 0


def test_a_run_that_does_not_answer_is_left_out() -> None:
    watched = Watched()
    assert watched.observer.snapshot(NODES, {}, {"gone": None}, CapacityRules(), can_grow=False).runs == ()
