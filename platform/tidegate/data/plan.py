"""The plan: which rows make which batch, and which part of a batch is which shard. It knows nothing of workers.

A plan is a pure function of the prepared files' row counts, the seed and the step. Files are permuted anew each epoch,
rows within a window of consecutive files; batches are cut from that order, and a batch into `shards` fixed parts. The
last batch of an epoch is as small as the rows that are left, so that every row counts exactly once an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tidegate.data.random import Rows, permutation

FILE_STREAM = 2**63


@dataclass(frozen=True)
class Plan:
    """Row numbers are positions in the prepared split: files in their stored order, rows in theirs."""

    rows_per_file: tuple[int, ...]
    seed: int
    global_batch: int
    shards: int
    window: int = 8

    @property
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
        size = self.batch_rows(step)
        start = step % self.steps_per_epoch * self.global_batch
        return self._ordered(
            self.epoch_of(step), start + size * shard // self.shards, start + size * (shard + 1) // self.shards
        )

    def _ordered(self, epoch: int, start: int, stop: int) -> Rows:
        """Places `start..stop-1` of the epoch's order."""
        edges = _window_edges(self, epoch)
        first, last = (int(np.searchsorted(edges, place, "right")) - 1 for place in (start, max(start, stop - 1)))
        parts = [
            _window_rows(self, epoch, window)[max(0, start - edges[window]) : max(0, stop - edges[window])]
            for window in range(first, last + 1)
        ]
        return np.concatenate(parts)


def owned_shards(shards: int, worker: int, workers: int) -> range:
    """The contiguous range of shards that worker `worker` of `workers` computes."""
    return range(worker * shards // workers, (worker + 1) * shards // workers)


@lru_cache(maxsize=4)
def _file_order(plan: Plan, epoch: int) -> Rows:
    return permutation(len(plan.rows_per_file), key=(plan.seed, epoch), stream=FILE_STREAM)


@lru_cache(maxsize=4)
def _window_edges(plan: Plan, epoch: int) -> Rows:
    """Where each window starts in the epoch's order, and where the last one ends."""
    sizes = np.asarray(plan.rows_per_file, np.int64)[_file_order(plan, epoch)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return np.append(starts[: -1 : plan.window], starts[-1])


@lru_cache(maxsize=4)
def _window_rows(plan: Plan, epoch: int, window: int) -> Rows:
    files = _file_order(plan, epoch)[window * plan.window : (window + 1) * plan.window]
    offsets = np.concatenate([[0], np.cumsum(plan.rows_per_file)])
    rows = np.concatenate([np.arange(offsets[file], offsets[file + 1]) for file in files]).astype(np.int64)
    return rows[permutation(len(rows), key=(plan.seed, epoch), stream=window)]
