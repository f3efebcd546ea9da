"""Which replicas hold nothing yet. Serve names a replica's node only seconds after Ray has given it its place."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from tidegate.ray_internals import Shape, shape
from tidegate.scheduling.snapshot import Node, Resources
from tidegate.scheduling.table import Table

NEW_S = 2.0
"""A replica that was just wanted is missing in Ray's list of what waits for up to a second."""


class Waiting:
    """Counts them from Ray's list of what waits, and does not wait for those that the list is about to name.

    Whoever never was in the list and is new has no place, unless room for one has gone since.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._listed: Counter[Shape] | None = None
        self._rooms: deque[tuple[float, Sequence[Node]]] = deque()
        self._seen: dict[str, float] = {}
        self._found: set[str] = set()
        self._heard: set[str] = set()
        self._looked = False
        self._since = 0.0

    def look(self, listed: Counter[Shape] | None, nodes: Sequence[Node]) -> None:
        """Begin another look: Ray's list (None where it has none), and what is free now."""
        now = self._clock()
        self._listed = None if listed is None else listed.copy()
        # What starts when nothing was looked at before may have its place for long.
        self._since = now if self._looked else -math.inf
        self._looked = True
        self._seen = {name: since for name, since in self._seen.items() if name in self._found}
        self._heard &= self._found
        self._found = set()
        self._rooms.append((now, nodes))
        while now - self._rooms[0][0] > NEW_S:
            self._rooms.popleft()

    def count(self, replicas: Sequence[str], need: Resources) -> int:
        """How many of these replicas, whose nodes Serve does not know, hold nothing. All, where Ray does not tell."""
        if self._listed is None:
            return len(replicas)
        asked = shape(need)
        listed = min(len(replicas), self._listed[asked])
        self._listed[asked] -= listed
        new = self._new(replicas)
        if listed >= len(new):
            self._heard.update(replicas)
            return listed
        rooms = [_seats(nodes, need) for _, nodes in self._rooms]
        return max(listed, len(new) - (max(rooms) - rooms[-1]))

    def _new(self, replicas: Sequence[str]) -> list[str]:
        now = self._clock()
        self._found.update(replicas)
        for name in replicas:
            self._seen.setdefault(name, self._since)
        return [name for name in replicas if name not in self._heard and now - self._seen[name] < NEW_S]


def _seats(nodes: Sequence[Node], need: Resources) -> int:
    """How many places of `need` are free."""
    if not need:
        return 0
    table = Table(nodes, need)
    return int(table.fits(table.vector(need)).sum())
