"""The cluster's nodes as one table that places are taken from and given back to, a copy of it to try things on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidegate.scheduling.snapshot import Node, Resources

Vector = NDArray[np.float64]
Seats = Counter[int]
"""How many places on each node, by its row."""
EPSILON = 1e-6
"""Fractions of a device add up to a little less than one."""


class Table:
    """Rows are nodes, columns are kinds of resources; a row holds what is free there."""

    def __init__(self, nodes: Iterable[Node], kinds: Iterable[str]) -> None:
        nodes = list(nodes)
        self.kinds = {kind: column for column, kind in enumerate(sorted(set(kinds)))}
        self.rows = {node.id: row for row, node in enumerate(nodes)}
        self.stays = np.array([not node.leaves for node in nodes], dtype=bool)
        self.free = np.array([self.vector(node.free) for node in nodes]).reshape(len(nodes), len(self.kinds))
        self.free[~self.stays] = 0

    def vector(self, resources: Resources) -> Vector:
        found = np.zeros(len(self.kinds))
        for kind, amount in resources.items():
            if kind in self.kinds:
                found[self.kinds[kind]] = amount
        return found

    def seats(self, nodes: Iterable[str]) -> Seats:
        """Of places on nodes those that count: on nodes that are known and stay."""
        rows = (self.rows.get(node) for node in nodes)
        return Counter(row for row in rows if row is not None and self.stays[row])

    def fits(self, need: Vector, free: Vector | None = None) -> NDArray[np.int64]:
        """How many places of `need` each row has."""
        asked = need > 0
        if not asked.any():
            return np.where(self.stays, np.iinfo(np.int32).max, 0)
        have = (self.free if free is None else free)[:, asked]
        count: NDArray[np.int64] = np.floor((have + EPSILON) / need[asked]).min(axis=1).astype(np.int64)
        return np.where(self.stays, np.maximum(count, 0), 0)

    def take(self, need: Vector, count: int) -> Seats:
        """Take up to `count` places, where the fewest would be left over: large holes stay whole."""
        taken: Seats = Counter()
        room = self.fits(need)
        rows = np.flatnonzero(room)
        for row in rows[np.argsort(room[rows], kind="stable")]:
            if not count:
                break
            here = min(int(room[row]), count)
            taken[int(row)] = here
            self.free[row] -= here * need
            count -= here
        return taken

    def give(self, need: Vector, seats: Mapping[int, int]) -> None:
        """Give places back."""
        for row, count in seats.items():
            self.free[row] += count * need

    def with_back(self, free: Vector, need: Vector, seats: Mapping[int, int], most: int) -> Vector:
        """`free` as it would be with up to `most` of the places given back on each row."""
        found = free.copy()
        for row, count in seats.items():
            found[row] += min(count, most) * need
        return found

    def copy(self) -> Table:
        other: Any = object.__new__(Table)
        other.kinds, other.rows, other.stays, other.free = self.kinds, self.rows, self.stays, self.free.copy()
        return other  # type: ignore[no-any-return]
