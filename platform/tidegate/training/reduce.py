"""Sums over the shards of a batch and over workers, in one fixed order or as fast as it goes.

`OrderedSum` adds shard vectors in one fixed binary tree: the same bits for any number of workers. A worker's contiguous
range of shards consists of a few whole subtrees of the tree over all shards. It adds each subtree by itself; the
partial sums travel; the rest of the tree is added in the same order everywhere. Between two workers all partial sums go
to both. Among more, each worker adds one slice of the vector for all (a reduce-scatter and an all-gather, as in
Rabenseifner 2004, but with the order of the additions kept), so that what travels does not grow with their number.

`FastSum` adds one vector a worker: its order, and so the last bits, follow the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from tidegate.data.plan import owned_shards

Span = tuple[int, int]
Combined = Callable[[list[list[Tensor]]], Tensor]
"""From each worker's partial sums to the sum of all."""


def subtrees(first: int, last: int, span: Span) -> list[Span]:
    """The largest whole subtrees of the tree over `span` that lie inside `first..last-1`, from left to right."""
    start, stop = span
    if first <= start and stop <= last:
        return [span]
    if stop <= first or last <= start:
        return []
    middle = (start + stop) // 2
    return subtrees(first, last, (start, middle)) + subtrees(first, last, (middle, stop))


def right_children(span: Span) -> dict[Span, Span]:
    """For every right child in the tree over `span`, its parent."""
    start, stop = span
    if stop - start == 1:
        return {}
    middle = (start + stop) // 2
    return {(middle, stop): span} | right_children((start, middle)) | right_children((middle, stop))


def combine(known: dict[Span, Tensor], span: Span) -> Tensor:
    """The sum over `span` from the sums of the subtrees that are known."""
    if span in known:
        return known[span]
    start, stop = span
    middle = (start + stop) // 2
    return combine(known, (start, middle)) + combine(known, (middle, stop))


class OrderedSum:
    """Sums one float vector `[size]` a shard over all shards of a batch. The last element is kept for a flag."""

    def __init__(self, shards: int, size: int, *, worker: int, workers: int, device: torch.device) -> None:
        self.size, self.worker, self.workers = size, worker, workers
        self.tree = (0, shards)
        self.parents = right_children(self.tree)
        mine = owned_shards(shards, worker, workers)
        self.first, self.last = mine.start, mine.stop
        self.owned = [self._owned(other) for other in range(workers)]
        self._exchange = Exchange([len(spans) for spans in self.owned], size, worker, device) if workers > 1 else None
        self._stack: list[tuple[Span, Tensor]] = []
        self._kept: Tensor | None = None
        self._next = self.first
        self._spare: list[Tensor] = []

    def _owned(self, worker: int) -> list[Span]:
        shards = owned_shards(self.tree[1], worker, self.workers)
        return subtrees(shards.start, shards.stop, self.tree)

    def add(self, vector: Tensor) -> None:
        """Add the next of this worker's shards, in order.

        `vector` may be overwritten for the next one; that of the last one is kept until `total`.
        """
        span, current = (self._next, self._next + 1), vector
        self._next += 1
        while self._stack and self._stack[-1][0] == (self.parents.get(span, span)[0], span[0]):
            left, total = self._stack.pop()
            total.add_(current)
            if current is not vector:
                self._spare.append(current)
            span, current = (left[0], span[1]), total
        if current is vector and self._next < self.last:
            current = self._spare.pop() if self._spare else torch.empty_like(vector)
            current.copy_(vector)
        elif current is vector:
            self._kept = vector
        self._stack.append((span, current))

    def discard(self) -> None:
        """Begin anew with this worker's first shard."""
        self._spare += [tensor for _, tensor in self._stack if tensor is not self._kept]
        self._stack, self._next, self._kept = [], self.first, None

    def total(self, flag: float) -> Tensor:
        """The sum `[size]` over all shards of all workers; its last element is the sum of the workers' flags.

        It is good until the next `add`.
        """
        mine = self._stack
        self.discard()
        mine[0][1][-1] = flag
        if self._exchange is None:
            return combine(dict(mine), self.tree)
        return self._exchange([tensor for _, tensor in mine], self._combined)

    def _combined(self, sums: list[list[Tensor]]) -> Tensor:
        known = {
            span: tensor
            for spans, tensors in zip(self.owned, sums, strict=True)
            for span, tensor in zip(spans, tensors, strict=True)
        }
        return combine(known, self.tree)


class FastSum:
    """Sums one vector `[size]` a worker."""

    def __init__(self, size: int, *, worker: int, workers: int, device: torch.device) -> None:
        self.worker, self.workers = worker, workers
        self._sum: Tensor | None = None
        # Gloo's all-reduce of two takes longer than exchanging the vectors, and adding them on both sides.
        self._theirs = torch.zeros(size, device=device) if workers == 2 and device.type == "cpu" else None

    def add(self, vector: Tensor) -> None:
        """Hand over this worker's vector; it becomes the sum."""
        self._sum = vector

    def discard(self) -> None:
        """Forget the vector."""
        self._sum = None

    def total(self, flag: float) -> Tensor:
        assert self._sum is not None
        self._sum[-1] = flag
        if self._theirs is not None:
            swap([self._sum], [self._theirs], 1 - self.worker)
            return self._sum.add_(self._theirs)
        if self.workers > 1:
            dist.all_reduce(self._sum)
        return self._sum


def swap(mine: list[Tensor], theirs: list[Tensor], other: int) -> None:
    """Send tensors to one other worker, and receive into `theirs` what it sends."""
    sent = [dist.P2POp(dist.isend, tensor, other) for tensor in mine]
    for work in dist.batch_isend_irecv(sent + [dist.P2POp(dist.irecv, tensor, other) for tensor in theirs]):
        work.wait()


class Exchange:
    """Brings every worker's partial sums together; `rows[w]` is how many worker `w` has."""

    def __init__(self, rows: list[int], size: int, worker: int, device: torch.device) -> None:
        self.rows, self.size, self.worker, self.workers = rows, size, worker, len(rows)
        self.slice = -(-size // self.workers)
        if self.workers == 2:
            self.theirs = list(torch.zeros(rows[1 - worker], size, device=device))
        else:
            self.send = torch.zeros(self.workers, rows[worker], self.slice, device=device)
            self.received = torch.zeros(sum(rows), self.slice, device=device)
            self.joined = torch.zeros(self.workers * self.slice, device=device)
            self.slices = list(self.joined.view(self.workers, self.slice))

    def __call__(self, mine: list[Tensor], combined: Combined) -> Tensor:
        return self._swapped(mine, combined) if self.workers == 2 else self._sliced(mine, combined)

    def _swapped(self, mine: list[Tensor], combined: Combined) -> Tensor:
        # Gloo's all_gather takes twice as long: it copies into memory of its own, and out of it.
        swap(mine, self.theirs, 1 - self.worker)
        return combined([mine, self.theirs] if self.worker == 0 else [self.theirs, mine])

    def _sliced(self, mine: list[Tensor], combined: Combined) -> Tensor:
        for row, tensor in enumerate(mine):
            for other in range(self.workers):
                part = tensor[other * self.slice : (other + 1) * self.slice]
                self.send[other, row, : len(part)].copy_(part)
        dist.all_to_all_single(
            self.received,
            self.send.view(-1, self.slice),
            output_split_sizes=self.rows,
            input_split_sizes=[self.rows[self.worker]] * self.workers,
        )
        total = combined([list(part) for part in torch.split(self.received, self.rows)])
        dist.all_gather(self.slices, total)
        return self.joined[: self.size]
