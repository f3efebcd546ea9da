"""Whether every row has the frames that its text needs, looked at before a run of hours and not at its end."""

from __future__ import annotations

import numpy as np

from tidegate.data.prepared import ROW, SPLITS, TARGET, Prepared, open_arrays
from tidegate.errors import DataError
from tidegate.spec.model import Ctc
from tidegate.spec.run import Spec
from tidegate.transforms.base import Array, length_key
from tidegate.transforms.tokens import PAD

ROWS_NAMED = 5


def check(spec: Spec, prepared: Prepared) -> None:
    """Raise DataError when a row has fewer frames than tokens: CTC says at most one a frame (Graves et al. 2006)."""
    if not isinstance(spec.model, Ctc):
        return
    (name,) = spec.data.inputs
    found: list[int] = []
    for split in SPLITS:
        for path, rows in zip(prepared.files(split), prepared.rows_per_file(split), strict=True):
            arrays = open_arrays(path, rows)
            short = too_short(arrays[length_key(name)][:, 0], arrays[TARGET], spec.model.halvings)
            found += arrays[ROW][short].tolist()
    if found:
        named = ", ".join(map(str, sorted(found)[:ROWS_NAMED])) + (", ..." if len(found) > ROWS_NAMED else "")
        raise DataError(
            f"{len(found)} rows have fewer frames than their text has tokens, {spec.data.target.column}: row {named}",
            expected="a frame for each token, after the halvings, and one more where a token repeats the one before",
            remedy="lower model.halvings, or leave such rows out",
        )


def too_short(frames: Array, codes: Array, halvings: int) -> Array:
    """Which rows have not enough: bool `[rows]`, of `frames` `[rows]` and the tokens' codes `[rows, length]`."""
    left = frames.astype(np.int64)
    for _ in range(halvings):
        left = (left + 1) // 2
    known = codes != PAD
    repeated = known[:, 1:] & (codes[:, 1:] == codes[:, :-1])
    short: Array = left < known.sum(axis=1) + repeated.sum(axis=1)
    return short
