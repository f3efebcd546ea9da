"""Who gets what: `decide` over random clusters, and by hand where a rule has to show."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.scheduling.policy import Decision, decide, places
from tidegate.scheduling.snapshot import Deployment, Node, Resources, Run, Snapshot
from tidegate.spec.capacity import CapacityRules, ServingRules, TrainingRules

GPU, HALF, CPU = {"GPU": 1.0}, {"GPU": 0.5}, {"CPU": 1.0}
RULES = CapacityRules()


def cluster(free: dict[str, Resources], *runs: Run, **more: Any) -> Snapshot:
    """Nodes with so much free besides what the runs hold on them."""
    total: dict[str, Counter[str]] = {name: Counter(resources) for name, resources in free.items()}
    for run in runs:
        for node in run.nodes:
            total[node].update(run.need)
    nodes = tuple(Node(name, dict(total[name]), resources) for name, resources in free.items())
    return Snapshot(nodes, runs=runs, **more)


def run(name: str = "run", low: int = 1, high: int = 8, *, on: str = "", need: Resources = GPU, **more: Any) -> Run:
    """A run with a worker on each node that `on` names by a letter; one that waits without any."""
    return Run(name, need, low, high, nodes=tuple(on), phase="training" if on else "queued", **more)


def wants(count: int, need: Resources = GPU, name: str = "app/model", **more: Any) -> Deployment:
    return Deployment(name, need, pending=count, **more)


def after(snapshot: Snapshot, decision: Decision) -> Snapshot:
    """The snapshot once the decision was carried out."""
    free = {node.id: Counter(node.free) for node in snapshot.nodes}

    def held(need: Resources, node: str, count: int) -> None:
        free[node].update({kind: -count * amount for kind, amount in need.items()})

    for each in snapshot.runs:
        for node in each.nodes:
            held(each.need, node, -1)
    for part in (*snapshot.runs, *snapshot.deployments):
        for node, count in decision.places.get(part.name, {}).items():
            held(part.need, node, count)
    nodes = tuple(replace(node, free=dict(free[node.id])) for node in snapshot.nodes)
    runs = tuple(
        replace(each, nodes=seated, phase="training" if seated else "queued")
        for each in snapshot.runs
        for seated in [tuple(Counter(decision.places[each.name]).elements())]
    )
    deployments = tuple(
        replace(each, running=each.running + new, pending=each.pending - len(new))
        for each in snapshot.deployments
        for new in [tuple(Counter(decision.places[each.name]).elements())]
    )
    return replace(snapshot, nodes=nodes, runs=runs, deployments=deployments)


def test_a_run_starts_at_once_with_all_that_is_free() -> None:
    decision = decide(cluster({"a": {"GPU": 2.0}, "b": {"GPU": 1.0}}, run(), calm_s=0), RULES)
    assert decision.sizes == {"run": 3}
    assert decision.reasons["run"] == "starts"


def test_replicas_get_what_is_free_before_a_run_gives() -> None:
    snapshot = cluster({"a": GPU}, run(on="aa"), deployments=(wants(1),))
    assert decide(snapshot, RULES).sizes == {"run": 2}


def test_a_run_gives_exactly_what_is_needed() -> None:
    snapshot = cluster({"a": {}, "b": {}}, run(on="aaab"), deployments=(wants(2),))
    decision = decide(snapshot, RULES)
    assert decision.sizes == {"run": 2}
    assert decision.reasons["run"] == "gives 1 to app/model" or "gives 2" in decision.reasons["run"]
    assert not decision.unmet


def test_a_device_is_not_two_halves_on_two_nodes() -> None:
    snapshot = cluster({"a": HALF, "b": HALF}, run(need=HALF, on="ab"), deployments=(wants(1),))
    decision = decide(snapshot, RULES)
    assert decision.sizes == {"run": 1}
    assert not decision.unmet
    apart = cluster({"a": HALF, "b": HALF}, deployments=(wants(1),))
    assert [each.count for each in decide(apart, RULES).unmet] == [1]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        # Priority counts before all else.
        ((run("one", on="aaaa", priority=1), run("two", on="bb")), {"one": 4, "two": 1}),
        # Then the smallest share of its speed.
        ((run("one", on="aaaa"), run("two", on="bb")), {"one": 3, "two": 2}),
        # Then what its resize costs.
        ((run("one", on="aa", resize_s=9.0), run("two", on="bb", resize_s=3.0)), {"one": 2, "two": 1}),
        # None goes below its fewest while another can give.
        ((run("one", 4, on="aaaa"), run("two", on="bb")), {"one": 4, "two": 1}),
    ],
)
def test_the_run_that_gives_up_least_gives(runs: tuple[Run, ...], expected: dict[str, int]) -> None:
    snapshot = cluster({"a": {}, "b": {}}, *runs, deployments=(wants(1),))
    assert decide(snapshot, RULES).sizes == expected


def test_a_run_whose_fewest_are_in_the_way_is_paused_and_waits_first_in_the_queue() -> None:
    snapshot = cluster({"a": {}}, run("low", 2, on="aa"), run("high", 1, on="a", priority=1), deployments=(wants(1),))
    decision = decide(snapshot, RULES)
    assert decision.sizes["low"] == 0
    assert decision.sizes["high"] >= 1
    assert decision.queue == ("low",)
    assert decision.reasons["low"] == "pauses for app/model"


def test_without_pausing_the_replica_waits() -> None:
    rules = CapacityRules(training=TrainingRules(pause=False))
    decision = decide(cluster({"a": {}}, run(on="a"), deployments=(wants(1),)), rules)
    assert decision.sizes == {"run": 1}
    assert [(each.who, each.count) for each in decision.unmet] == [("app/model", 1)]


def test_training_keeps_its_floor() -> None:
    rules = CapacityRules(training=TrainingRules(floor={"GPU": 2}))
    snapshot = cluster({"a": {}}, run("one", on="aa"), run("two", on="aa"), deployments=(wants(3),))
    decision = decide(snapshot, rules)
    assert sum(decision.sizes.values()) == 2
    assert [each.count for each in decision.unmet] == [1]


def test_serving_takes_no_more_than_its_ceiling() -> None:
    rules = CapacityRules(serving=ServingRules(ceiling={"GPU": 2}))
    has_one = replace(wants(5), running=("a",))
    decision = decide(cluster({"a": {}}, run(on="aaaa"), deployments=(has_one,)), rules)
    assert decision.sizes == {"run": 3}
    assert decision.reasons["app/model"] == "serving is at its ceiling"


def test_headroom_is_kept_but_nobody_is_paused_for_it() -> None:
    calm = replace(wants(0), headroom=1)
    assert decide(cluster({"a": {}}, run(on="aaa"), deployments=(calm,)), RULES).sizes == {"run": 2}
    assert decide(cluster({"a": {}}, run(on="a"), deployments=(calm,)), RULES).sizes == {"run": 1}
    assert decide(cluster({"a": GPU}, run(on="a"), deployments=(calm,)), RULES).sizes == {"run": 1}


@pytest.mark.parametrize(("calm_s", "changed_s", "size"), [(99, 99, 3), (5, 99, 2), (99, 5, 2)])
def test_idle_devices_are_grown_into_after_a_cool_down(calm_s: float, changed_s: float, size: int) -> None:
    snapshot = cluster({"a": GPU}, run(on="aa", changed_s=changed_s), calm_s=calm_s)
    assert decide(snapshot, RULES).sizes == {"run": size}


def test_growing_waits_until_it_pays_for_the_resize() -> None:
    def size(resize_s: float) -> int:
        return decide(cluster({"a": GPU}, run(on="aa", resize_s=resize_s), calm_s=40), RULES).sizes["run"]

    assert (size(20), size(21)) == (3, 2)


def test_those_that_have_least_grow_first() -> None:
    snapshot = cluster({"a": {"GPU": 3.0}}, run("one", on="aaa"), run("two", on="a"))
    assert decide(snapshot, RULES).sizes == {"one": 3, "two": 4}


def test_equals_come_to_fair_shares_and_priority_to_more() -> None:
    fair = cluster({"a": {}}, run("one", on="aaaaa"), run("two", on="a"))
    assert decide(fair, RULES).sizes == {"one": 3, "two": 3}
    almost = cluster({"a": {}}, run("one", on="aaa"), run("two", on="aa"))
    assert decide(almost, RULES).sizes == {"one": 3, "two": 2}
    strict = cluster({"a": {}}, run("one", on="aaa"), run("two", on="aaa", priority=1))
    assert decide(strict, RULES).sizes == {"one": 1, "two": 5}


def test_a_run_that_waits_takes_what_its_equals_can_spare_and_all_of_its_inferiors() -> None:
    spared = cluster({"a": {}}, run("one", on="aaa"), run("new", since=1.0), calm_s=0)
    assert decide(spared, RULES).sizes == {"one": 2, "new": 1}
    refused = cluster({"a": {}}, run("one", 3, on="aaa"), run("new", since=1.0), calm_s=0)
    decision = decide(refused, RULES)
    assert decision.sizes == {"one": 3, "new": 0}
    assert decision.queue == ("new",)
    assert decision.reasons["new"] == "waits: it needs 1 GPU, there is room for 0"
    paused = cluster({"a": {}}, run("one", 3, on="aaa"), run("new", 2, priority=1), calm_s=0)
    assert decide(paused, RULES).sizes == {"one": 0, "new": 3}


def test_runs_wait_in_the_order_of_priority_and_of_coming() -> None:
    waiting = (run("late", since=2.0), run("early", since=1.0), run("first", since=3.0, priority=1))
    assert decide(cluster({"a": {}}, *waiting), RULES).queue == ("first", "early", "late")


def test_the_feed_of_a_run_has_its_cpu() -> None:
    one = run(need=CPU, feed_cpus=1)
    assert decide(cluster({"a": {"CPU": 1.0}}, one), RULES).sizes == {"run": 0}
    assert decide(cluster({"a": {"CPU": 3.0}}, one), RULES).sizes == {"run": 2}


def test_a_run_moves_from_a_node_that_leaves() -> None:
    both = cluster({"a": {}, "b": GPU}, run(on="aa"), calm_s=0)
    leaving = replace(both, nodes=(replace(both.nodes[0], leaves=True), both.nodes[1]))
    decision = decide(leaving, RULES)
    assert decision.sizes == {"run": 1}
    assert decision.reasons["run"] == "its node leaves"
    nowhere = replace(leaving, nodes=leaving.nodes[:1])
    assert decide(nowhere, RULES).queue == ("run",)


def test_what_a_run_is_giving_back_is_not_asked_for_twice() -> None:
    changing = replace(run(on="aaaa"), phase="changing", given=3)
    snapshot = cluster({"a": {}}, changing, run("other", on="a"), deployments=(wants(1),))
    assert decide(snapshot, RULES).sizes == {"run": 3, "other": 1}


def test_a_run_on_its_way_to_more_keeps_its_places() -> None:
    changing = replace(run(on="a"), phase="changing", given=3)
    decision = decide(cluster({"a": {"GPU": 2.0}}, changing, run("new"), calm_s=0), RULES)
    assert decision.sizes == {"run": 3, "new": 0}


@pytest.mark.parametrize(("pending_s", "size"), [(10.0, 2), (200.0, 1)])
def test_a_cluster_that_can_grow_is_waited_for_if_the_rules_say_so(pending_s: float, size: int) -> None:
    snapshot = cluster({"a": {}}, run(on="aa"), deployments=(wants(1, pending_s=pending_s),), can_grow=True)
    decision = decide(snapshot, CapacityRules(when_full="grow"))
    assert decision.sizes == {"run": size}
    assert [each.who for each in decision.unmet] == (["app/model"] if size == 2 else [])
    assert decide(snapshot, RULES).sizes == {"run": 1}


def test_a_run_that_ends_is_left_alone() -> None:
    snapshot = cluster({"a": {}}, replace(run(on="aa"), phase="ending"), deployments=(wants(1),))
    assert decide(snapshot, RULES).sizes == {}


def test_places_in_words() -> None:
    assert places(2, {"GPU": 0.5, "CPU": 1}) == "2 x 1 CPU and 0.5 GPU"


needs = st.sampled_from([GPU, HALF, {"GPU": 1.0, "CPU": 1.0}, {"GPU": 2.0}, CPU])
rules = st.builds(
    CapacityRules,
    serving=st.builds(ServingRules, headroom=st.just(0), ceiling=st.sampled_from([{}, {"GPU": 3.0}])),
    training=st.builds(TrainingRules, pause=st.booleans(), floor=st.sampled_from([{}, {"GPU": 1.0}])),
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Up to four nodes on which runs and replicas sit that fit there, and more of both that wait."""
    names = "abcd"[: draw(st.integers(1, 4))]
    total = {name: {"GPU": float(draw(st.integers(0, 4))), "CPU": float(draw(st.integers(0, 4)))} for name in names}
    free = {name: Counter(resources) for name, resources in total.items()}

    def seated(need: Resources, count: int) -> tuple[str, ...]:
        found: list[str] = []
        for _ in range(count):
            fitting = [n for n in names if all(free[n][kind] >= amount for kind, amount in need.items())]
            if fitting:
                found.append(draw(st.sampled_from(fitting)))
                free[found[-1]].subtract(need)
        return tuple(found)

    runs, deployments = [], []
    for number in range(draw(st.integers(0, 4))):
        need, low = draw(needs), draw(st.integers(1, 3))
        nodes = seated(need, draw(st.integers(0, 4)))
        if len(nodes) < low:
            for node in nodes:
                free[node].update(need)
            nodes = ()
        runs.append(
            Run(
                f"run{number}",
                need,
                low,
                max(len(nodes), low + draw(st.integers(0, 3))),
                nodes=nodes,
                phase="training" if nodes else "queued",
                priority=draw(st.integers(0, 2)),
                since=float(draw(st.integers(0, 3))),
                changed_s=draw(st.sampled_from([0.0, 1e3])),
            )
        )
    for number in range(draw(st.integers(0, 3))):
        need = draw(needs)
        deployments.append(
            Deployment(
                f"app{number}",
                need,
                seated(need, draw(st.integers(0, 2))),
                draw(st.integers(0, 4)),
                priority=number % 2,
            )
        )
    nodes = tuple(Node(name, total[name], dict(free[name])) for name in names)
    return Snapshot(nodes, tuple(deployments), tuple(runs), calm_s=draw(st.sampled_from([0.0, 1e3])))


def test_a_run_that_takes_cpus_does_not_cost_the_floor_its_gpu() -> None:
    node = Node("a", {"GPU": 1.0, "CPU": 2.0}, {"GPU": 0.0, "CPU": 1.0})
    both = run("both", 1, 1, on="a", need={"GPU": 1.0, "CPU": 1.0})
    cpus = run("cpus", 2, 2, need={"CPU": 1.0}, priority=1)
    snapshot = Snapshot((node,), runs=(both, cpus))
    kept = CapacityRules(training=TrainingRules(floor={"GPU": 1}))
    assert decide(snapshot, kept).sizes == {"both": 1, "cpus": 0}
    assert decide(snapshot, CapacityRules()).sizes == {"both": 0, "cpus": 2}


@given(snapshots(), rules)
@settings(max_examples=400, deadline=None)
def test_no_run_is_under_its_fewest_or_over_its_most_and_training_keeps_its_floor(
    snapshot: Snapshot, rules: CapacityRules
) -> None:
    decision = decide(snapshot, rules)
    assert set(decision.sizes) == {each.name for each in snapshot.runs}
    for each in snapshot.runs:
        assert decision.sizes[each.name] == 0 or each.low <= decision.sizes[each.name] <= each.high
        assert (decision.sizes[each.name] == 0) == (each.name in decision.queue)
        if not rules.training.pause and each.phase == "training":
            assert decision.sizes[each.name] >= each.low
    for kind, floor in rules.training.floor.items():
        before = sum(each.need.get(kind, 0) * len(each.nodes) for each in snapshot.runs)
        held = sum(each.need.get(kind, 0) * decision.sizes[each.name] for each in snapshot.runs)
        assert held >= min(before, floor) - 1e-6


@given(snapshots(), rules)
@settings(max_examples=400, deadline=None)
def test_all_of_it_has_room_on_every_node(snapshot: Snapshot, rules: CapacityRules) -> None:
    decision = decide(snapshot, rules)
    for each in snapshot.runs:
        assert sum(decision.places[each.name].values()) == decision.sizes[each.name]
    for each in snapshot.deployments:
        unmet = sum(missing.count for missing in decision.unmet if missing.who == each.name)
        assert sum(decision.places[each.name].values()) <= each.pending - unmet
    for node in after(snapshot, decision).nodes:
        assert all(amount >= -1e-6 for amount in node.free.values()), (node, decision)


@given(snapshots())
@settings(max_examples=400, deadline=None)
def test_replicas_get_a_place_whenever_there_is_one(snapshot: Snapshot) -> None:
    """Also where a run must be paused. Of one kind: then which of them comes first does not matter."""
    snapshot = replace(snapshot, deployments=snapshot.deployments[:1])
    for wanted in snapshot.deployments:
        there = {node.id: Counter(node.free) for node in snapshot.nodes}
        for each in snapshot.runs:
            for node in each.nodes:
                there[node].update(each.need)
        room = sum(
            int(min((have[kind] + 1e-6) // amount for kind, amount in wanted.need.items())) for have in there.values()
        )
        decision = decide(snapshot, RULES)
        unmet = sum(missing.count for missing in decision.unmet if missing.who == wanted.name)
        assert unmet == max(0, wanted.pending - room)


@given(snapshots(), rules)
@settings(max_examples=400, deadline=None)
def test_it_comes_to_rest(snapshot: Snapshot, rules: CapacityRules) -> None:
    """At once, unless somebody had to give; a run that was paused may find another place after that."""
    rounds = []
    for _ in range(6):
        decision = decide(snapshot, rules)
        snapshot = after(snapshot, decision)
        rounds.append(decision.sizes)
    assert rounds[-1] == rounds[-2]
