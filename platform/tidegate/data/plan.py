"""The plan: which rows make which batch, and which part of a batch is which shard. It knows nothing of workers.

A plan is a pure function of the prepared files' row counts, the seed and the step. Files are permuted anew each epoch,
rows within a window of consecutive files; batches are cut from that order, and a batch into `shards` fixed parts. The
last batch of an epoch is as small as the rows that are left, so that every row counts exactly once an epoch.

Where lengths are known, rows of about the same length come into the same batch, so that little of it is padding: the
rows of some batches are put in the order of their lengths, cut into batches, and these are permuted. The rows of a
batch that two windows share stay as they are.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np

from tidegate.data.random import Rows, permutation
from tidegate.transforms.base import Array

FILE_STREAM, BATCH_STREAM = 2**63, 2**62
POOL_BATCHES = 16
"""So many batches are put in the order of their rows' lengths together: with more, fewer orders are possible."""
Window = tuple[int, int]
"""An epoch, and the number of a window of files in it."""


class Lengths(Protocol):
    """How long rows are."""

    def of_file(self, file: int) -> Array:
        """Of the rows of one file, in their order: whole numbers `[rows]`."""


@dataclass(frozen=True)
class Plan:
    """Row numbers are positions in the prepared split: files in their stored order, rows in theirs."""

    # Left out of the hash, which is taken several times a step: there may be a hundred thousand files.
    rows_per_file: tuple[int, ...] = field(hash=False)
    seed: int
    global_batch: int
    shards: int
    window: int = 8
    lengths: Lengths | None = field(default=None, hash=False)

    @cached_property
    def num_rows(self) -> int:
        return sum(self.rows_per_file)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_rows // self.global_batch)

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def batch_rows(self, step: int) -> int:
        """How many rows the batch of `step` (counted from the start of the run) holds."""
        start = step % self.steps_per_epoch * self.global_batch
        return min(self.global_batch, self.num_rows - start)

    def shard_rows(self, step: int, shard: int) -> Rows:
        """The ordered rows of one shard of the batch of `step`. Empty when the batch has fewer rows than shards."""
        return self.rows(step, range(shard, shard + 1))[0]

    def rows(self, step: int, shards: range) -> tuple[Rows, list[int]]:
        """The ordered rows of contiguous shards of the batch of `step`, and where each shard begins among them.

        The last of these `len(shards) + 1` places is where the rows end.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        size, start = self.batch_rows(step), place * self.global_batch
        cuts = [size * shard // self.shards for shard in range(shards.start, shards.stop + 1)]
        return self._ordered(epoch, start + cuts[0], start + cuts[-1]), [cut - cuts[0] for cut in cuts]

    def window_of(self, step: int) -> Window:
        """The window in which the batch of `step` begins."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return epoch, bisect_right(_window_edges(self, epoch), place * self.global_batch) - 1

    def window_after(self, window: Window) -> Window:
        """The window that is read next."""
        epoch, number = window
        last = (number + 1) * self.window >= len(self.rows_per_file)
        return (epoch + 1, 0) if last else (epoch, number + 1)

    def window_files(self, window: Window) -> list[int]:
        """The files of a window, as positions in `rows_per_file`."""
        epoch, number = window
        return [int(file) for file in _file_order(self, epoch)[number * self.window : (number + 1) * self.window]]

    def _ordered(self, epoch: int, start: int, stop: int) -> Rows:
        """Places `start..stop-1` of the epoch's order."""
        edges, parts = _window_edges(self, epoch), []
        window = bisect_right(edges, start) - 1
        while start < stop:
            end = min(stop, edges[window + 1])
            parts.append(_window_rows(self, (epoch, window))[start - edges[window] : end - edges[window]])
            start, window = end, window + 1
        return np.concatenate(parts, dtype=np.int64) if parts else np.zeros(0, np.int64)


def owned_shards(shards: int, worker: int, workers: int) -> range:
    """The contiguous range of shards that worker `worker` of `workers` computes."""
    return range(worker * shards // workers, (worker + 1) * shards // workers)


# Two of each: a batch may begin in one window and end in the next; and the next epoch's files are asked for ahead.
@lru_cache(maxsize=2)
def _file_order(plan: Plan, epoch: int) -> Rows:
    return permutation(len(plan.rows_per_file), key=(plan.seed, epoch), stream=FILE_STREAM)


@lru_cache(maxsize=2)
def _window_edges(plan: Plan, epoch: int) -> list[int]:
    """Where each window starts in the epoch's order, and where the last one ends."""
    sizes = np.asarray(plan.rows_per_file, np.int64)[_file_order(plan, epoch)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return [*starts[: -1 : plan.window].tolist(), plan.num_rows]


@lru_cache(maxsize=2)
def _window_rows(plan: Plan, window: Window) -> Array:
    """The rows of a window in their order, in the smallest type that holds them: files may be of very many rows."""
    epoch, number = window
    files = plan.window_files(window)
    offsets = np.concatenate([[0], np.cumsum(plan.rows_per_file)])
    dtype = np.min_scalar_type(plan.num_rows)
    rows = np.concatenate([np.arange(offsets[file], offsets[file + 1], dtype=dtype) for file in files])
    order = permutation(len(rows), key=(plan.seed, epoch), stream=number)
    if plan.lengths is not None:
        lengths = np.concatenate([plan.lengths.of_file(file) for file in files])
        start = _window_edges(plan, epoch)[number]
        order = _by_length(order, lengths[order], plan, window, -start % plan.global_batch)
    return rows[order]


def _by_length(order: Rows, lengths: Array, plan: Plan, window: Window, first: int) -> Rows:
    """The same places, in batches of about the same length. `first`: where in them the first whole batch begins."""
    size = plan.global_batch
    batches = max(0, len(order) - first) // size
    pools = [
        slice(first + batch * size, first + min(batches, batch + POOL_BATCHES) * size)
        for batch in range(0, batches, POOL_BATCHES)
    ]
    result = order.copy()
    for pool in pools:
        result[pool] = order[pool][lengths[pool].argsort(kind="stable")]
    whole = slice(first, first + batches * size)
    mixed = permutation(batches, key=(plan.seed, window[0]), stream=BATCH_STREAM + window[1])
    result[whole] = result[whole].reshape(batches, size)[mixed].reshape(-1)
    return result
