"""Permutations that are the same on every machine and in every release of NumPy.

`numpy.random.Generator.permutation` may change between releases; the raw output of a bit generator may not (NEP 19).
So a permutation is the stable order of the raw 64-bit words of Philox 4x64-10 (Salmon et al., SC 2011).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def permutation(count: int, *, key: tuple[int, int], stream: int) -> Rows:
    """A permutation of `0..count-1`, a pure function of the 128-bit `key` and the `stream` number below 2**64."""
    generator = np.random.Philox(
        key=np.asarray([part % 2**64 for part in key], np.uint64), counter=np.asarray([0, 0, 0, stream], np.uint64)
    )
    words = generator.random_raw(count)
    order = words.argsort()
    ordered = words[order]
    if (ordered[1:] == ordered[:-1]).any():
        # Only equal words tell a stable order from any other, which is several times faster and nearly always enough.
        order = words.argsort(kind="stable")
    return order.astype(np.int64, copy=False)
