"""Which replicas hold nothing yet, told before Ray's list of what waits names them."""

from __future__ import annotations

from collections import Counter

import pytest

from tidegate.ray_internals import shape
from tidegate.scheduling.snapshot import Node
from tidegate.scheduling.waiting import NEW_S, Waiting

ONE = {"CPU": 1.0}


class Looks:
    """Looks at a node of four CPUs, one every half second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waiting = Waiting(lambda: self.now)

    def see(self, *replicas: str, listed: int, free: float = 0.0) -> int:
        self.now += 0.5
        self.waiting.look(Counter({shape(ONE): listed}), (Node("a", {"CPU": 4.0}, {"CPU": free}),))
        return self.waiting.count(replicas, ONE)


@pytest.fixture
def looks() -> Looks:
    """A look at a cluster on which nothing waits has been taken."""
    found = Looks()
    assert found.see(listed=0, free=2.0) == 0
    return found


def test_all_wait_where_ray_does_not_tell() -> None:
    waiting = Waiting()
    waiting.look(None, ())
    assert waiting.count(["b", "c"], ONE) == 2


def test_new_replicas_wait_before_the_list_names_them(looks: Looks) -> None:
    looks.now += NEW_S
    assert looks.see("b", "c", listed=0) == 2
    assert looks.see("b", "c", listed=2) == 2
    assert looks.see("b", "c", listed=1) == 1
    assert looks.see("b", "c", listed=0) == 0


def test_a_new_replica_for_which_room_has_gone_has_it(looks: Looks) -> None:
    assert looks.see("b", "c", listed=0, free=2.0) == 2
    assert looks.see("b", "c", listed=0, free=1.0) == 1
    assert looks.see("b", "c", listed=0, free=0.0) == 0
    assert looks.see("b", "c", listed=0, free=0.0) == 0


def test_what_the_list_never_names_is_taken_to_have_its_place(looks: Looks) -> None:
    looks.now += NEW_S
    assert looks.see("b", listed=0) == 1
    looks.now += NEW_S
    assert looks.see("b", listed=0) == 0


def test_what_starts_at_the_first_look_may_have_its_place_for_long() -> None:
    looks = Looks()
    assert looks.see("b", "c", listed=0) == 0
    assert looks.see("b", "c", "d", listed=0) == 1


def test_two_deployments_do_not_count_the_same_entry_of_the_list(looks: Looks) -> None:
    looks.now += NEW_S
    assert looks.see("b", listed=1) == 1
    assert looks.waiting.count(["c"], ONE) == 1
    looks.now += NEW_S
    assert looks.see("b", listed=1) == 1
    assert looks.waiting.count(["c"], ONE) == 0
