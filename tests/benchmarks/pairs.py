"""Interleaved pairs: ours, theirs, ours, theirs ... and the ratio of each pair. Machines drift; ratios do so less."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence


def compare(
    name: str, ours: Callable[[], float], theirs: Callable[[], float], *, pairs: int, wanted: float | None
) -> bool:
    """Measure, print every pair and the median ratio with its quartiles; whether the median reaches `wanted`.

    None wants nothing: the ratio is reported, and nothing is missed.
    """
    ratios = [shown(name, number, ours(), theirs()) for number in range(1, pairs + 1)]
    return judged(name, ratios, at_least=wanted)


def shown(name: str, number: int, mine: float, other: float, digits: int = 0) -> float:
    """Print a pair; its ratio."""
    ratio = mine / other
    print(
        f"{name} {number:>2}: ours {mine:>10,.{digits}f}   theirs {other:>10,.{digits}f}   ratio {ratio:.3f}",
        flush=True,
    )
    return ratio


def judged(name: str, ratios: Sequence[float], *, at_least: float | None = None, at_most: float | None = None) -> bool:
    """Print the median ratio with its quartiles and what was wanted of it; whether that is reached."""
    low, median, high = quartiles(ratios)
    reached = (at_least is None or median >= at_least) and (at_most is None or median <= at_most)
    wanted = [f"{at_least:.2f}"] if at_least is not None else [f"at most {at_most:.2f}"] if at_most is not None else []
    verdict = f"wanted {wanted[0]}: {'reached' if reached else 'MISSED'}" if wanted else "reported"
    print(f"{name}: median ratio {median:.3f} (quartiles {low:.3f} to {high:.3f}), {verdict}", flush=True)
    return reached


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high
