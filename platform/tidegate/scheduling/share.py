"""Fair shares: what is left goes to whoever has least."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def raised(sizes: Sequence[int], highs: Sequence[int], extra: int) -> list[int]:
    """`sizes` with `extra` handed out one by one, always to the smallest that may still grow (max-min fairness).

    Among equals the first goes first.
    """
    found = list(sizes)
    smallest = [(size, place) for place, (size, high) in enumerate(zip(sizes, highs, strict=True)) if size < high]
    heapq.heapify(smallest)
    while extra > 0 and smallest:
        size, place = heapq.heappop(smallest)
        found[place], extra = size + 1, extra - 1
        if size + 1 < highs[place]:
            heapq.heappush(smallest, (size + 1, place))
    return found
