"""Ordered reduction: shard vectors are added in one fixed binary tree: the same bits for any number of workers.

A worker's contiguous range of shards consists of a few whole subtrees of the tree over all shards. It adds each subtree
by itself; the partial sums travel in one all-gather; every worker finishes the tree in the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from tidegate.data.plan import owned_shards

Span = tuple[int, int]


def subtrees(first: int, last: int, span: Span) -> list[Span]:
    """The largest whole subtrees of the tree over `span` that lie inside `first..last-1`, from left to right."""
    start, stop = span
    if first <= start and stop <= last:
        return [span]
    if stop <= first or last <= start:
        return []
    middle = (start + stop) // 2
    return subtrees(first, last, (start, middle)) + subtrees(first, last, (middle, stop))


class OrderedSum:
    """Sums one float vector `[size]` a shard over all shards of a batch."""

    def __init__(self, shards: int, size: int, *, worker: int, workers: int, device: torch.device) -> None:
        self.shards, self.worker, self.workers = shards, worker, workers
        self.owned = [self._owned(other) for other in range(workers)]
        rows = max(len(spans) for spans in self.owned)
        self.mine = torch.zeros(rows, size, device=device)
        self.all = [torch.zeros(rows, size, device=device) for _ in range(workers)] if workers > 1 else [self.mine]

    def _owned(self, worker: int) -> list[Span]:
        shards = owned_shards(self.shards, worker, self.workers)
        return subtrees(shards.start, shards.stop, (0, self.shards))

    def __call__(self, vector: Callable[[int], Tensor]) -> Tensor:
        """The sum `[size]`. `vector(shard)` is called for this worker's shards in order; it may reuse memory."""
        for row, span in enumerate(self.owned[self.worker]):
            self.mine[row].copy_(_tree_sum(vector, span))
        if self.workers > 1:
            dist.all_gather(self.all, self.mine)
        known = {
            span: self.all[worker][row] for worker, spans in enumerate(self.owned) for row, span in enumerate(spans)
        }
        return _combine(known, (0, self.shards))


def _tree_sum(vector: Callable[[int], Tensor], span: Span) -> Tensor:
    start, stop = span
    if stop - start == 1:
        return vector(start)
    middle = (start + stop) // 2
    left = _tree_sum(vector, (start, middle)).clone()
    return left.add_(_tree_sum(vector, (middle, stop)))


def _combine(known: dict[Span, Tensor], span: Span) -> Tensor:
    if span in known:
        return known[span]
    start, stop = span
    middle = (start + stop) // 2
    return _combine(known, (start, middle)) + _combine(known, (middle, stop))
