"""Who should have what: `decide`, a pure function from what is seen and a person's rules to the size of every run.

It starts from how things are and changes as little as it can. Serving comes first: replicas that are wanted get places
that are free, and then places of the runs that give up least. Runs that wait start next, and what stays idle for a
while goes to the runs that have least. The workers that a run keeps are taken to stay where they are: so there is an
assignment that holds on every node, not only in sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from tidegate.scheduling.share import raised
from tidegate.scheduling.snapshot import Deployment, Resources, Run, Snapshot
from tidegate.scheduling.table import EPSILON, Seats, Table, Vector
from tidegate.spec.capacity import CapacityRules

PASSED_S = 120.0
"""A run that has waited for so long is not passed any more by those behind it."""
Spare = Callable[[Run], int]


@dataclass(frozen=True)
class Unmet:
    """Places that are wanted and that there is no room for."""

    who: str
    need: Resources
    count: int


@dataclass(frozen=True)
class Decision:
    """`sizes` is the workers of every run, 0 for one that waits. `queue` holds the waiting runs, the next one first.

    `places` is an assignment that has room for all of it: how many workers of a run, or replicas that were pending, on
    each node.
    """

    sizes: Mapping[str, int]
    places: Mapping[str, Mapping[str, int]]
    reasons: Mapping[str, str]
    queue: tuple[str, ...]
    unmet: tuple[Unmet, ...]


def decide(snapshot: Snapshot, rules: CapacityRules) -> Decision:
    """The sizes that the runs should have. The same again once they have them, while nothing else changes."""
    plan = _Plan(snapshot, rules)
    plan.keep_feeds()
    plan.seat_replicas()
    plan.keep_headroom()
    plan.seat_moved()
    plan.start_queued()
    plan.grow()
    plan.balance()
    return plan.decision()


@dataclass
class _State:
    """What a plan changes. Counters are replaced, never changed, so that a copy is cheap."""

    table: Table
    seats: dict[str, Seats]
    """Where the workers of each run are or will be, and the replicas that were pending."""
    size: dict[str, int]
    held: Vector
    """What all runs hold together once the sizes are theirs."""
    reasons: dict[str, str]
    waiting: tuple[Run, ...] = ()
    gave: frozenset[str] = frozenset()

    def copy(self) -> _State:
        return replace(
            self,
            table=self.table.copy(),
            seats=dict(self.seats),
            size=dict(self.size),
            held=self.held.copy(),
            reasons=dict(self.reasons),
        )


class _Plan:
    def __init__(self, snapshot: Snapshot, rules: CapacityRules) -> None:
        self.snapshot, self.rules = snapshot, rules
        self.runs = [run for run in snapshot.runs if run.phase != "ending"]
        table = Table(snapshot.nodes, _kinds(snapshot, rules))
        self.need = {run.name: table.vector(run.need) for run in self.runs}
        self.floor, self.ceiling = table.vector(rules.training.floor), table.vector(rules.serving.ceiling)
        size = {run.name: _size(run) for run in self.runs}
        held = sum((size[name] * need for name, need in self.need.items()), np.zeros(len(table.kinds)))
        self.state = _State(table, {run.name: table.seats(run.nodes) for run in self.runs}, size, held, {})
        self.unmet: list[Unmet] = []
        self.started: set[str] = set()
        self._hopeless: list[Vector] = []
        self._takes_for_run = False

    def decision(self) -> Decision:
        state, nodes = self.state, list(self.state.table.rows)
        queue = tuple(run.name for run in sorted(state.waiting, key=_order))
        places = {who: {nodes[row]: count for row, count in seats.items()} for who, seats in state.seats.items()}
        return Decision(state.size, places, state.reasons, queue, tuple(self.unmet))

    def keep_feeds(self) -> None:
        """The CPUs that feed runs are neither workers' nor replicas'."""
        for run in self.runs:
            if run.feed_cpus and run.phase in ("training", "changing"):
                self.state.table.take(self.state.table.vector({"CPU": run.feed_cpus}), 1)

    # What serving gets.

    def seat_replicas(self) -> None:
        under = self._under_ceiling()
        for deployment in sorted(self.snapshot.deployments, key=lambda each: (-each.priority, each.name)):
            need = self.state.table.vector(deployment.need)
            count = under(need, deployment.pending)
            if count < deployment.pending:
                self.state.reasons[deployment.name] = "serving is at its ceiling"
            seats = self.state.table.take(need, count)
            missing = count - seats.total()
            if missing and not self._waits_for_nodes(deployment):
                seats += self._borrowed(need, missing, deployment.name, self.runs, pause=self.rules.training.pause)
            self.state.seats[deployment.name] = seats
            if seats.total() < count:
                self.unmet.append(Unmet(deployment.name, deployment.need, count - seats.total()))

    def _under_ceiling(self) -> Callable[[Vector, int], int]:
        """How many of the replicas that are asked for stay under the ceiling; those are counted from then on."""
        capped = np.array([kind in self.rules.serving.ceiling for kind in self.state.table.kinds])
        left = self.ceiling.copy()
        for deployment in self.snapshot.deployments:
            left -= len(deployment.running) * self.state.table.vector(deployment.need)

        def under(need: Vector, count: int) -> int:
            kinds = capped & (need > 0)
            if kinds.any():
                count = max(0, min(count, int(np.floor((left[kinds] + EPSILON) / need[kinds]).min())))
            left[:] -= count * need
            return count

        return under

    def _waits_for_nodes(self, deployment: Deployment) -> bool:
        rules = self.rules
        waits = self.snapshot.can_grow and rules.when_full == "grow" and deployment.pending_s < rules.grow_wait_s
        if waits:
            self.state.reasons[deployment.name] = "waits for new nodes before it takes from training"
        return waits

    def keep_headroom(self) -> None:
        """Room for replicas that nobody wants yet. No run is paused for it."""
        for deployment in self.snapshot.deployments:
            need = self.state.table.vector(deployment.need)
            count = deployment.headroom - self.state.table.take(need, deployment.headroom).total()
            self._borrowed(need, count, f"the headroom of {deployment.name}", self.runs, pause=False)

    # How runs give.

    def _borrowed(self, need: Vector, count: int, who: str, runs: Iterable[Run], *, pause: bool) -> Seats:
        """Up to `count` places of `need`, taken from runs: from the one that gives up least first."""
        if count <= 0:
            return Counter()
        size = self.state.size
        givers = sorted(runs, key=lambda run: (run.priority, -size[run.name], run.resize_s, run.name))
        taken: Seats = Counter()
        changing = [run for run in givers if run.phase == "changing"]
        ways: list[tuple[Spare, list[Run]]] = [(self._owed, changing), (self._above_low, givers), (self._whole, givers)]
        for spare, those in ways if pause else ways[:2]:
            while taken.total() < count and self._free_one(need, who, those, spare):
                taken += self.state.table.take(need, count - taken.total())
        return taken

    def _owed(self, run: Run) -> int:
        """Workers that it is giving back already."""
        return self.state.seats[run.name].total() - self.state.size[run.name]

    def _above_low(self, run: Run) -> int:
        """Workers that it can do without."""
        if run.phase != "training":
            return 0
        return min(self.state.size[run.name] - run.low, self._above_floor(run))

    def _whole(self, run: Run) -> int:
        """All of its workers."""
        size = self.state.size[run.name]
        return size if run.phase == "training" and self._above_floor(run) >= size else 0

    def _above_floor(self, run: Run) -> int:
        """How many of this run's workers training can lose. What goes from run to run it does not lose."""
        need = self.need[run.name]
        kinds = (self.floor > 0) & (need > 0) & (not self._takes_for_run)
        above = self.state.held - self.floor + EPSILON
        return int(np.floor(above[kinds] / need[kinds]).min()) if kinds.any() else sum(self.state.size.values())

    def _free_one(self, need: Vector, who: str, givers: Sequence[Run], spare: Spare) -> bool:
        """Free one place on some node by taking workers from runs, from as few as it takes. Whether there was one."""
        if any((need >= failed).all() for failed in self._hopeless):
            return False
        table, free, asked = self.state.table, self.state.table.free, list[Run]()
        for run in givers:
            most, seats = spare(run), self.state.seats[run.name]
            if most <= 0 or not seats:
                continue
            asked.append(run)
            free = table.with_back(free, self.need[run.name], seats, most)
            rows = np.flatnonzero(table.fits(need, free))
            if len(rows):
                lack = np.maximum(need - table.free[rows], 0).sum(axis=1)
                self._clear(int(rows[lack.argmin()]), need, who, asked, spare)
                return True
        if spare == self._whole and len(givers) == len(self.runs):
            self._hopeless.append(need)
        return False

    def _clear(self, row: int, need: Vector, who: str, givers: Sequence[Run], spare: Spare) -> None:
        """Take workers of `givers` from a node until `need` fits there, and no more than that."""
        taken: Counter[str] = Counter()
        free = self.state.table.free[row].copy()
        # The last one is why it fits; of those before it only what it does not bring itself.
        for run in reversed(givers):
            most = min(spare(run), self.state.seats[run.name][row])
            while (free + EPSILON < need).any() and taken[run.name] < most:
                taken[run.name] += 1
                free += self.need[run.name]
        for run in givers:
            while taken[run.name] and (free - self.need[run.name] + EPSILON >= need).all():
                taken[run.name] -= 1
                free -= self.need[run.name]
            if taken[run.name]:
                self._give(run, Counter({row: taken[run.name]}), who, spare)

    def _give(self, run: Run, places: Seats, who: str, spare: Spare) -> None:
        state, name, lost = self.state, run.name, places.total()
        if spare == self._whole:
            places, lost = state.seats[name], state.size[name]
        state.table.give(self.need[name], places)
        state.seats[name] = state.seats[name] - places
        if spare == self._owed:
            return
        self._shrink(run, lost, f"gives {lost} to {who}" if lost < state.size[name] else f"pauses for {who}")

    def _shrink(self, run: Run, lost: int, reason: str) -> None:
        state = self.state
        state.size[run.name] -= lost
        state.held -= lost * self.need[run.name]
        state.gave |= {run.name}
        state.reasons[run.name] = reason
        if not state.size[run.name]:
            state.waiting += (run,)

    # What runs get.

    def seat_moved(self) -> None:
        """Places for workers that are on their way, or whose nodes leave."""
        for run in sorted(self.runs, key=_order):
            missing = self.state.size[run.name] - self.state.seats[run.name].total()
            if missing <= 0 or run.phase == "queued":
                continue
            self.state.seats[run.name] += self.state.table.take(self.need[run.name], missing)
            if run.phase == "training":
                self._settle(run)

    def _settle(self, run: Run) -> None:
        """A run some of whose nodes leave goes on with what it finds elsewhere, or waits."""
        state, have = self.state, self.state.seats[run.name].total()
        if have < run.low:
            state.seats[run.name] += self._from_others(run, run.low - have)
            have = state.seats[run.name].total()
        if have < run.low:
            state.table.give(self.need[run.name], state.seats[run.name])
            state.seats[run.name], have = Counter(), 0
        if have < state.size[run.name]:
            self._shrink(run, state.size[run.name] - have, "its node leaves")

    def start_queued(self) -> None:
        first: Run | None = None
        for run in sorted((run for run in self.runs if run.phase == "queued"), key=_order):
            if first is not None and run.need.keys() & first.need.keys():
                self.state.waiting += (run,)
                self.state.reasons[run.name] = f"waits behind {first.name}, which has waited for long"
                continue
            before = self.state
            self.state = before.copy()
            if self._start(run):
                self.started.add(run.name)
                continue
            self.state = before
            if run.waits_s > PASSED_S:
                first = first or run
            room = int(before.table.fits(self.need[run.name]).sum())
            before.waiting += (run,)
            before.reasons[run.name] = f"waits: it needs {places(run.low, run.need)}, there is room for {room}"
            self.unmet.append(Unmet(run.name, run.need, max(1, run.low - room)))

    def _start(self, run: Run) -> bool:
        state, need = self.state, self.need[run.name]
        before = state.held.copy()
        if run.feed_cpus and not state.table.take(state.table.vector({"CPU": run.feed_cpus}), 1):
            return False
        seats = state.table.take(need, run.low)
        seats += self._from_others(run, run.low - seats.total())
        state.seats[run.name], state.size[run.name] = seats, run.low
        state.held = state.held + run.low * need
        state.reasons[run.name] = "starts"
        # Whom it takes from may have held more than it will: of another kind, say.
        keeps_floor = bool((state.held + EPSILON >= np.minimum(before, self.floor)).all())
        return keeps_floor and seats.total() == run.low

    def _from_others(self, run: Run, count: int) -> Seats:
        """Places for a run: what others can spare whose priority is not higher; all, where it is lower."""
        others = [other for other in self.runs if other.priority <= run.priority and other.name != run.name]
        lower = [other for other in others if other.priority < run.priority]
        who, self._takes_for_run = f"run {run.name}", True
        taken = self._borrowed(self.need[run.name], count, who, others, pause=False)
        missing = count - taken.total()
        taken += self._borrowed(self.need[run.name], missing, who, lower, pause=self.rules.training.pause)
        self._takes_for_run = False
        return taken

    def balance(self) -> None:
        """Between runs whose workers need the same: priority first, then fair shares. One that changed lately waits."""
        if self._is_restless():
            return
        rested = [run for run in self.runs if self._is_rested(run)]
        for group in _grouped(rested, lambda run: tuple(self.need[run.name])):
            fair = self._fair(group)
            givers = [run for run in group if fair[run.name] < self.state.size[run.name]]
            takers = [run for run in group if fair[run.name] > self.state.size[run.name]]
            for run in givers:
                lost = self.state.size[run.name] - fair[run.name]
                self._move(run, lost, takers, fair)
                to = f"to {', '.join(taker.name for taker in takers)}" if takers else "back: no more was asked for"
                self._shrink(run, lost, f"gives {lost} {to}")

    def _fair(self, group: Sequence[Run]) -> dict[str, int]:
        """What each should have of what they have together."""
        fair = {run.name: min(run.low, self.state.size[run.name]) for run in group}
        extra = sum(self.state.size[run.name] for run in group) - sum(fair.values())
        for equals in _grouped(group, lambda run: -run.priority):
            # Whoever has more now keeps it when it cannot be divided.
            equals = sorted(equals, key=lambda run: -self.state.size[run.name])
            sizes = raised([fair[run.name] for run in equals], [run.high for run in equals], extra)
            extra -= sum(sizes) - sum(fair[run.name] for run in equals)
            fair |= {run.name: size for run, size in zip(equals, sizes, strict=True)}
        return fair

    def _move(self, giver: Run, count: int, takers: Sequence[Run], fair: Mapping[str, int]) -> None:
        state = self.state
        places = list(state.seats[giver.name].elements())[:count]
        state.seats[giver.name] = state.seats[giver.name] - Counter(places)
        for taker in takers:
            wanted = min(fair[taker.name] - state.size[taker.name], len(places))
            got, places = places[:wanted], places[wanted:]
            if got:
                state.seats[taker.name] = state.seats[taker.name] + Counter(got)
                state.size[taker.name] += len(got)
                state.held += len(got) * self.need[taker.name]
                state.reasons[taker.name] = f"takes {len(got)} from {giver.name}"

    def grow(self) -> None:
        """What stays idle goes to the runs of the highest priority, and among them to those that have least."""
        ready = [run for run in self.runs if run.name in self.started or self._may_grow(run)]
        for equals in _grouped(ready, lambda run: -run.priority):
            for group in _grouped(equals, lambda run: tuple(-self.need[run.name])):
                self._grow_group(group)

    def _grow_group(self, group: Sequence[Run]) -> None:
        state, need = self.state, self.need[group[0].name]
        # Among equals the one that grows anyway: then fewer runs are disturbed.
        group = sorted(group, key=lambda run: state.size[run.name])
        wanted = sum(max(0, run.high - state.size[run.name]) for run in group)
        room = min(wanted, int(np.minimum(state.table.fits(need), wanted).sum()))
        sizes = raised([state.size[run.name] for run in group], [run.high for run in group], room)
        for run, size in zip(group, sizes, strict=True):
            more = size - state.size[run.name]
            if more <= 0 or not (run.name in self.started or self._pays(run, more)):
                continue
            state.seats[run.name] = state.seats[run.name] + state.table.take(need, more)
            state.size[run.name] = size
            state.held += more * need
            if run.name not in self.started:
                state.reasons[run.name] = f"takes {more} that nobody used"

    def _may_grow(self, run: Run) -> bool:
        return self._is_rested(run) and not self._is_restless()

    def _is_rested(self, run: Run) -> bool:
        idle = run.phase == "training" and run.name not in self.state.gave and self.state.size[run.name] > 0
        return idle and run.changed_s >= self.rules.cool_down_s

    def _is_restless(self) -> bool:
        """Whether serving may want back soon what a run would grow into."""
        return self.snapshot.calm_s < self.rules.cool_down_s

    def _pays(self, run: Run, more: int) -> bool:
        """Whether as long a calm again would win more steps than the change of size costs."""
        calm = min(self.snapshot.calm_s, run.changed_s)
        return more * calm >= run.resize_s * self.state.size[run.name]


def places(count: int, need: Resources) -> str:
    """So many places of a need, in words."""
    one = " and ".join(f"{amount:g} {kind}" for kind, amount in sorted(need.items()))
    return f"{count} x {one}" if count != 1 else one


def _kinds(snapshot: Snapshot, rules: CapacityRules) -> set[str]:
    parts: list[Deployment | Run] = [*snapshot.deployments, *snapshot.runs]
    needs = [node.total for node in snapshot.nodes] + [part.need for part in parts]
    return {kind for need in needs for kind in need} | {"CPU"} | {*rules.training.floor, *rules.serving.ceiling}


def _size(run: Run) -> int:
    return {"training": len(run.nodes), "changing": run.given}.get(run.phase, 0)


def _order(run: Run) -> tuple[int, float, str]:
    return (-run.priority, run.since, run.name)


def _grouped(runs: Iterable[Run], key: Callable[[Run], Any]) -> list[list[Run]]:
    """Groups of one key, in its order; in each, runs in the order in which they came."""
    return [sorted(group, key=_order) for _, group in groupby(sorted(runs, key=key), key=key)]
