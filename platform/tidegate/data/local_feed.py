"""The `local` feed: a worker maps the prepared files into memory and copies the rows of its shards out of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

from tidegate.data.plan import Plan, Window, owned_shards
from tidegate.data.prepared import Prepared
from tidegate.transforms.augment import RowWork
from tidegate.transforms.base import Array

Batch = dict[int, dict[str, Array]]
STEPS_AHEAD = 2
"""With row-wise work: one step that is ready, and one that is worked on."""


class LocalFeed:
    """An iterator over the steps `start..stop-1`, each with the worker's shards and their rows."""

    def __init__(
        self,
        prepared: Prepared,
        plan: Plan,
        *,
        start: int,
        stop: int,
        worker: int,
        workers: int,
        work: RowWork | None,
    ) -> None:
        self.plan, self.steps, self.work = plan, range(start, stop), work
        self.shards = owned_shards(plan.shards, worker, workers)
        self.reader = prepared.reader("train")
        self._window: Window | None = None

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """`(step, {shard: {column: rows}})` from the start on. The arrays are the caller's own, to write to as well."""
        # Copying rows is so little work that handing it to a thread costs more than it saves.
        return map(self._step, self.steps) if self.work is None else self._ahead()

    def _ahead(self) -> Iterator[tuple[int, Batch]]:
        """The same, prepared by a thread that is a few steps ahead and ends with this iterator."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        pending: deque[Future[tuple[int, Batch]]] = deque()
        try:
            for step in self.steps:
                pending.append(pool.submit(self._step, step))
                if len(pending) > STEPS_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # Not waited for: the thread itself may be the one that collects an iterator nobody holds any more.
            pool.shutdown(wait=False, cancel_futures=True)

    def _step(self, step: int) -> tuple[int, Batch]:
        self._read_ahead(self.plan.window_of(step))
        rows, cuts = self.plan.rows(step, self.shards)
        columns = self.reader.read(rows).items()
        batch = {
            shard: {name: array[first:last] for name, array in columns}
            for shard, (first, last) in zip(self.shards, pairwise(cuts), strict=True)
        }
        if self.work is not None:
            batch = {shard: self.work(arrays, step=step, shard=shard) for shard, arrays in batch.items()}
        return step, batch

    def _read_ahead(self, window: Window) -> None:
        """When a window begins, have the kernel read the next one's files while this one is trained on."""
        if self._window is None:
            self.reader.read_ahead(self.plan.window_files(window))
        if window != self._window:
            self._window = window
            self.reader.read_ahead(self.plan.window_files(self.plan.window_after(window)))
