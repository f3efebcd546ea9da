"""Interleaved pairs: ours, theirs, ours, theirs ... and the ratio of each pair. Machines drift; ratios do so less."""

from __future__ import annotations

import statistics
from collections.abc import Callable


def compare(name: str, ours: Callable[[], float], theirs: Callable[[], float], *, pairs: int, wanted: float) -> bool:
    """Measure, print every pair and the median ratio with its quartiles; whether the median reaches `wanted`."""
    ratios = []
    for number in range(1, pairs + 1):
        mine, other = ours(), theirs()
        ratios.append(mine / other)
        print(f"{name} {number:>2}: ours {mine:>10,.0f}   theirs {other:>10,.0f}   ratio {ratios[-1]:.3f}", flush=True)
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if pairs > 1 else ratios * 3
    verdict = "reached" if median >= wanted else "MISSED"
    print(
        f"{name}: median ratio {median:.3f} (quartiles {low:.3f} to {high:.3f}), wanted {wanted:.2f}: {verdict}",
        flush=True,
    )
    return median >= wanted
