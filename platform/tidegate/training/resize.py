"""How a run changes its size while it goes on: a policy of our own inside Ray Train's controller.

Ray's policy asks for the most workers there may be and restarts a group without a checkpoint. This one starts as many
as are wanted and fit, and leaves a running group alone until its first rank has written a checkpoint for the purpose.
It counts what is really free: Ray's own count does not see what Serve holds.

The controller ends of an exception here and stalls while it waits here. So nothing here does either, but for what is
said at each place.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import ray

from tidegate import ray_internals
from tidegate.errors import StoppedError
from tidegate.training import room
from tidegate.training.monitor import View

logger = logging.getLogger(__name__)
T = TypeVar("T")
LOOK_EVERY_S = 1.0
GROW_AFTER_S = 30.0
"""How long more room must last before a run that nobody asked takes it: a resize must pay for itself."""
ANSWER_S = 10.0
"""How long the controller waits for the monitor when there is no group that it could keep waiting."""
GIVE_WAY_S = 2.0
"""How long a run that lends waits with its smaller group: replicas that start on the same cores begin without it."""
FRESH_S = 0.05
"""The same while workers train: an answer takes a few milliseconds, and one of the poll before would be late."""


class Room:
    """Counts the workers that fit, those of this run included, on nodes that will stay."""

    def __init__(self, need: room.Resources, spare_cpus: int) -> None:
        self.need, self.spare_cpus = need, spare_cpus
        self.held: Counter[str] = Counter()

    def count(self) -> int:
        nodes = room.free_nodes()
        for node, workers in self.held.items():
            where = node if node in nodes or "" not in nodes else ""
            for kind, amount in self.need.items() if where in nodes else ():
                nodes[where][kind] = nodes[where].get(kind, 0.0) + workers * amount
        return room.fitting(nodes, self.need, spare_cpus=self.spare_cpus)

    def is_leaving(self) -> bool:
        return bool(self.held.keys() & ray_internals.draining_nodes())


class Decider:
    """What to do with a group of workers, apart from Ray's classes. `size` 0: nothing."""

    def __init__(self, bounds: tuple[int, int], room: Room) -> None:
        self.bounds, self.room = bounds, room
        self._replaced = 0
        self._answered = 0
        self._seen = 0
        self._more_since: float | None = None
        self._looked = float("-inf")

    def start(self, view: View) -> int:
        """The size of a group to start; 0 while the fewest do not fit."""
        self._answered, self._more_since = view.asks, None
        return self._target(view)

    def replace(self, view: View) -> int:
        """The size to replace a running group at: only when it waits at its checkpoint for that, and only once."""
        if not view.yielded or view.group <= self._replaced:
            return 0
        size = self.start(view)
        if size:
            self._replaced = view.group
        return size

    def change(self, view: View, size: int, now: float) -> tuple[int, str]:
        """The size that a running group of `size` should yield for, and why; 0 for none. `now` in seconds."""
        if view.asks == self._seen and now - self._looked < LOOK_EVERY_S:
            return 0, ""
        self._seen, self._looked = view.asks, now
        target = self._target(view)
        if target and self.room.is_leaving():
            return target, "a node is being drained"
        if not target or target == size:
            self._more_since = None
            return 0, ""
        if view.asks != self._answered:
            return target, "asked for"
        if target < size:
            return 0, ""
        if self._more_since is None:
            self._more_since = now
        return (target, "there is room") if now - self._more_since >= GROW_AFTER_S else (0, "")

    def _target(self, view: View) -> int:
        size = min(view.wanted, self.bounds[1], self.room.count())
        return size if size >= self.bounds[0] else 0


def policy(scaling_config: Any, monitor: Any, spare_cpus: int, need: room.Resources) -> Any:
    """A policy for the controller of Ray Train. Raises MissingError where this Ray has no ground for it."""
    names = ray_internals.scaling()
    bounds = (scaling_config.min_workers, scaling_config.max_workers)

    class SizedPolicy(names.policy):  # type: ignore[misc, name-defined]
        """Starts what is wanted and fits; replaces a group that waits at a checkpoint; nothing else."""

        def __init__(self) -> None:
            super().__init__(scaling_config)
            self._decider: Decider = Decider(bounds, Room(need, spare_cpus))
            self._view = View(bounds[0], asks=0, ends=False, group=0, yielded=False, lends=False)
            self._question: Any = None
            self._waits = False
            self._nodes: list[str] = []
            self._group: Any = None

        def _get_num_workers_for_resource_request(self) -> int:
            return int(min(self._view.wanted, bounds[1]))

        def make_decision_for_non_running_worker_group(self) -> Any:
            ray_internals.share_barrier()
            # What was asked while workers ran may be answered as it was before they failed.
            self._question = None
            if not self._look(ANSWER_S) or self._view.ends:
                # There is no group to tell. Of an exception the controller ends and gives back what the last one held.
                raise StoppedError("the run is to end, or its driver is gone")
            size = _guarded(lambda: self._decider.start(self._view), 0)
            _guarded(self._maybe_send_resource_request, None)
            self._tell(waits=not size)
            if not size:
                _guarded(self._give_back, None)
                # Ray's controller asks again at once.
                time.sleep(0.5)
                return names.noop()
            return self._resized(size)

        def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
            size = _guarded(lambda: self._running(worker_group_state), 0)
            if self._view.yielded and self._view.ends:
                # Asked to end while it waited at its checkpoint: a new group would only begin and leave again.
                # Ray looks after the devices of a controller that is gone, but only with a dashboard.
                _guarded(self._give_back, None)
                ray.actor.exit_actor()
            return self._resized(size) if size else names.noop()

        def _tell_nodes(self, nodes: list[str]) -> None:
            if nodes != self._nodes:
                self._nodes = nodes
                monitor.tell_nodes.remote(tuple(nodes))

        def _tell(self, *, waits: bool) -> None:
            if waits != self._waits:
                self._waits = waits
                monitor.tell_phase.remote("waiting" if waits else "starting")

        def _give_back(self) -> None:
            """A run that waits or leaves holds nothing.

            Ray keeps the devices of those that were left of a lost group until the next one starts. Worse, it gives the
            old group the next free device in place of a lost one: the run would wait for what it holds itself.
            """
            group, self._group = self._group, None
            if group is not None:
                self._decider.room.held.clear()
                self._tell_nodes([])
                ray_internals.give_back(group)

        def _resized(self, size: int) -> Any:
            # What the group before holds is given back before the next one starts.
            self._group = None
            self._decider.room.held.clear()
            self._tell_nodes([])
            return self._get_resize_decision(size)

        def _running(self, group: Any) -> int:
            self._maybe_send_resource_request()
            if not self._look(FRESH_S):
                return 0
            nodes = ray_internals.worker_nodes(group)
            self._group, self._decider.room.held = group, Counter(nodes)
            self._tell_nodes(nodes)
            if self._view.ends:
                return 0
            size: int = self._decider.replace(self._view)
            if self._view.lends and 0 < size < len(nodes):
                self._give_back()
                time.sleep(GIVE_WAY_S)
            if size or self._view.yielded:
                return size
            target, why = self._decider.change(self._view, len(nodes), time.monotonic())
            if target:
                monitor.order_yield.remote(self._view.group, target, why)
            return 0

        def _look(self, wait_s: float) -> bool:
            """Fetch the monitor's answer if it is there within `wait_s`; whether it was."""
            if self._question is None:
                self._question = monitor.view.remote()
            done, _ = ray.wait([self._question], timeout=wait_s)
            if not done:
                return False
            question, self._question = self._question, None
            try:
                self._view = ray.get(question)
            except ray.exceptions.RayError as error:
                logger.warning("the run's monitor does not answer: %s", error)
                return False
            return True

    return SizedPolicy()


def _guarded(decide: Callable[[], T], otherwise: T) -> T:
    try:
        return decide()
    except Exception:
        logger.exception("no decision about the size of the run")
        return otherwise
