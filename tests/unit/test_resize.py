"""What decides the size of a group of workers, without Ray: whatever happens, the rules that must hold."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import ray_internals
from tidegate.training.monitor import View
from tidegate.training.resize import GROW_AFTER_S, LOOK_EVERY_S, Decider, Room

BOUNDS = (2, 6)
TICK_S = 0.2
"""How often the controller asks."""


class Cluster(Room):
    """Room for so many workers, as a test says."""

    def __init__(self, count: int) -> None:
        super().__init__({"CPU": 1}, 0)
        self.now, self.leaving = count, False

    def count(self) -> int:
        return self.now

    def is_leaving(self) -> bool:
        return self.leaving


def view(wanted: int = 6, *, asks: int = 0, group: int = 1, yielded: bool = False) -> View:
    return View(wanted, asks, ends=False, group=group, yielded=yielded, lends=False)


class Running:
    """A decider with a group that it started, asked as the controller asks."""

    def __init__(self, wanted: int = 6, room: int = 6) -> None:
        self.cluster = Cluster(room)
        self.decider = Decider(BOUNDS, self.cluster)
        self.size = self.decider.start(view(wanted))
        self.now, self.wanted, self.asks = 0.0, wanted, 0

    def ask(self, wanted: int) -> None:
        self.wanted, self.asks = wanted, self.asks + 1

    def replace(self) -> int:
        """The group yields and is replaced."""
        self.size = self.decider.replace(view(self.wanted, asks=self.asks, yielded=True))
        return self.size

    def change(self, seconds: float) -> tuple[int, str]:
        """The first size that the group should yield for within these seconds, and why; 0 for none."""
        until = self.now + seconds
        while self.now < until:
            self.now += TICK_S
            size, why = self.decider.change(view(self.wanted, asks=self.asks), self.size, self.now)
            if size:
                return size, why
        return 0, ""


@given(st.integers(0, 9), st.integers(0, 9))
def test_a_group_starts_with_what_is_wanted_and_fits_or_not_at_all(wanted: int, room: int) -> None:
    size = Decider(BOUNDS, Cluster(room)).start(view(wanted))
    most = min(wanted, room, BOUNDS[1])
    assert size == (most if most >= BOUNDS[0] else 0)


@given(st.integers(2, 6), st.integers(2, 9), st.floats(1, 1000))
def test_a_group_that_has_what_is_wanted_is_left_alone(wanted: int, room: int, seconds: float) -> None:
    assert Running(wanted, room).change(min(seconds, 100)) == (0, "")


@given(st.integers(2, 6), st.integers(2, 6), st.integers(2, 9))
def test_an_ask_is_answered_at_once_with_as_much_of_it_as_fits(before: int, after: int, room: int) -> None:
    running = Running(before, room)
    assert running.change(LOOK_EVERY_S) == (0, "")
    running.ask(after)
    target = min(after, room)
    assert running.change(TICK_S) == ((target, "asked for") if target != running.size else (0, ""))


def test_an_ask_is_remembered_until_there_is_room_for_it() -> None:
    running = Running(wanted=2, room=2)
    running.ask(4)
    assert running.change(100) == (0, "")
    running.cluster.now = 4
    assert running.change(LOOK_EVERY_S + TICK_S) == (4, "asked for")


def test_an_ask_for_what_was_wanted_all_along_takes_new_room_at_once() -> None:
    running = Running(wanted=6, room=3)
    running.cluster.now = 6
    assert running.change(2 * LOOK_EVERY_S) == (0, "")
    running.ask(6)
    assert running.change(TICK_S) == (6, "asked for")


def test_more_room_is_taken_unasked_only_when_it_has_lasted() -> None:
    running = Running(room=3)
    running.cluster.now = 5
    assert running.change(GROW_AFTER_S - LOOK_EVERY_S) == (0, "")
    assert running.change(3 * LOOK_EVERY_S) == (5, "there is room")


def test_an_ask_is_answered_when_a_group_starts_with_less_of_it() -> None:
    running = Running(wanted=2, room=4)
    running.ask(6)
    assert running.replace() == 4
    running.cluster.now = 6
    assert running.change(GROW_AFTER_S - LOOK_EVERY_S) == (0, "")


def test_room_that_lasted_before_a_group_started_does_not_count() -> None:
    running = Running(room=3)
    running.cluster.now = 5
    assert running.change(GROW_AFTER_S - LOOK_EVERY_S) == (0, "")
    running.cluster.now = 3
    assert running.replace() == 3
    running.cluster.now = 5
    assert running.change(GROW_AFTER_S - LOOK_EVERY_S) == (0, "")


def test_room_that_comes_and_goes_is_not_taken() -> None:
    running = Running(room=3)
    for room in (5, 3) * 5:
        running.cluster.now = room
        assert running.change(GROW_AFTER_S - 2 * LOOK_EVERY_S) == (0, "")


@given(st.integers(0, 5))
def test_less_room_does_not_shrink_a_group_that_holds_its_own(room: int) -> None:
    running = Running(room=6)
    running.cluster.now = room
    assert running.change(100) == (0, "")


@given(st.integers(0, 9))
def test_a_group_leaves_a_node_that_is_drained_when_the_rest_has_room(room: int) -> None:
    running = Running(room=4)
    running.cluster.leaving, running.cluster.now = True, room
    size, why = running.change(LOOK_EVERY_S + TICK_S)
    assert size == (min(room, 6) if room >= BOUNDS[0] else 0)
    assert why == ("a node is being drained" if size else "")


@given(st.booleans(), st.integers(1, 3), st.integers(0, 6))
def test_a_running_group_is_replaced_only_when_it_waits_for_it(yielded: bool, group: int, room: int) -> None:
    running = Running()
    running.cluster.now = room
    size = running.decider.replace(view(3, group=group, yielded=yielded))
    assert size == (min(3, room) if yielded and room >= BOUNDS[0] else 0)


def test_a_group_is_replaced_once() -> None:
    decider = Running().decider
    assert decider.replace(view(3, group=1, yielded=True)) == 3
    assert decider.replace(view(3, group=1, yielded=True)) == 0
    assert decider.replace(view(4, group=2, yielded=True)) == 4
    assert decider.replace(view(4, group=1, yielded=True)) == 0


def test_a_group_that_waits_to_be_replaced_is_replaced_as_soon_as_there_is_room() -> None:
    running = Running()
    running.cluster.now = 1
    assert running.decider.replace(view(3, group=1, yielded=True)) == 0
    running.cluster.now = 2
    assert running.decider.replace(view(3, group=1, yielded=True)) == 2


def test_the_cluster_is_not_looked_at_at_every_poll() -> None:
    running, looks = Running(), 0

    def count() -> int:
        nonlocal looks
        looks += 1
        return 6

    running.cluster.count = count  # type: ignore[method-assign]
    running.change(20)
    assert looks <= 20 / LOOK_EVERY_S + 1


@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.integers(2, 6),
            st.booleans(),
            st.sampled_from(["none", "yields", "lost"]),
            st.floats(0.2, 40),
        ),
        max_size=30,
    )
)
def test_whatever_happens_sizes_are_in_bounds_fit_and_a_group_yields_for_another_size_or_a_drain(
    history: list[tuple[int, int, bool, str, float]],
) -> None:
    cluster = Cluster(6)
    decider = Decider(BOUNDS, cluster)
    size, group, now = decider.start(view()), 1, 0.0
    for asks, (cluster.now, wanted, cluster.leaving, event, seconds) in enumerate(history):
        now += seconds
        if not size or event == "lost":
            size, group = decider.start(view(wanted, group=group)), group + 1
        elif event == "yields":
            size = decider.replace(view(wanted, group=group, yielded=True)) or size
            group += 1
        else:
            target, why = decider.change(view(wanted, asks=asks // 3, group=group), size, now)
            assert bool(target) == bool(why)
            assert not target or target != size or cluster.leaving
            assert not target or BOUNDS[0] <= target <= min(BOUNDS[1], wanted, cluster.now)
            continue
        assert size == 0 or BOUNDS[0] <= size <= BOUNDS[1]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """What Ray says is free on each node, and the nodes it drains under the name "drained"."""
    free: dict[str, dict[str, float]] = {}
    drained: set[str] = set()
    monkeypatch.setattr(ray_internals, "free_by_node", lambda: free)
    monkeypatch.setattr(ray_internals, "draining_nodes", lambda: drained & free.keys())
    drained.add("drained")
    return free


def test_what_the_group_holds_counts_as_room(nodes: dict[str, dict[str, float]]) -> None:
    nodes |= {"a": {"CPU": 1.0}, "b": {}}
    room = Room({"CPU": 2}, 0)
    assert room.count() == 0
    room.held = Counter({"a": 1, "b": 2})
    assert room.count() == 3
    assert nodes == {"a": {"CPU": 1.0}, "b": {}}, "what Ray told was changed"


def test_nodes_that_are_drained_or_gone_are_no_room(nodes: dict[str, dict[str, float]]) -> None:
    nodes |= {"a": {"CPU": 2.0}, "drained": {"CPU": 8.0}}
    room = Room({"CPU": 1}, 0)
    assert (room.count(), room.is_leaving()) == (2, False)
    room.held = Counter({"drained": 2, "dead": 3, "a": 1})
    assert (room.count(), room.is_leaving()) == (3, True)


def test_a_ray_that_tells_only_the_sum_still_has_room(nodes: dict[str, dict[str, float]]) -> None:
    nodes[""] = {"CPU": 1.0}
    room = Room({"CPU": 1}, 0)
    room.held = Counter({"a": 2, "b": 1})
    assert room.count() == 4


def test_the_feed_keeps_its_cpu(nodes: dict[str, dict[str, float]]) -> None:
    nodes |= {"a": {"CPU": 3.0}}
    room = Room({"CPU": 1}, 1)
    room.held = Counter({"a": 2})
    assert room.count() == 4
