"""CTC needs a frame for each token: which rows lack some, against the likelihood itself, and how they are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tidegate.data.prepared import ROW, TARGET, Prepared, write_arrays
from tidegate.errors import DataError
from tidegate.spec import document
from tidegate.spec.run import Spec
from tidegate.training.enough_frames import check, too_short
from tidegate.transforms.base import length_key

LONGEST = 6


def codes_of(texts: list[list[int]]) -> np.ndarray:
    return np.array([[*text, *[0] * (LONGEST - len(text))] for text in texts], np.int32)


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=LONGEST), min_size=1, max_size=5), st.data())
def test_rows_without_enough_frames_are_those_that_cannot_be_said(texts: list[list[int]], data: st.DataObject) -> None:
    frames = np.array([data.draw(st.integers(1, 2 * LONGEST)) for _ in texts])
    halvings = data.draw(st.integers(0, 2))
    left = torch.tensor([-(-int(count) // 2**halvings) for count in frames])
    codes = codes_of(texts)
    chances = torch.zeros(int(left.max()), len(texts), 4).log_softmax(dim=2)
    sizes = torch.tensor([len(text) for text in texts])
    losses = torch.nn.functional.ctc_loss(chances, torch.from_numpy(codes).long(), left, sizes, reduction="none")
    assert too_short(frames, codes, halvings).tolist() == losses.isinf().tolist()


def prepared(folder: Path, frames: dict[str, list[int]], texts: dict[str, list[list[int]]]) -> Prepared:
    splits, row = {}, 0
    for split, own in frames.items():
        arrays = {
            ROW: np.arange(row, row + len(own)),
            TARGET: codes_of(texts[split]),
            length_key("sound"): np.array(own, np.int32).reshape(-1, 1),
        }
        row += len(own)
        size = write_arrays(folder / f"{split}.arrow", arrays)
        splits[split] = [{"name": f"{split}.arrow", "rows": len(own), "bytes": size}]
    return Prepared(folder, {"splits": splits})


def test_rows_of_every_split_are_looked_at_and_named(tmp_path: Path) -> None:
    spec = document.parse(
        Spec,
        {
            "name": "said",
            "data": {
                "source": {"path": "said.parquet"},
                "inputs": {"sound": {"type": "audio", "max_seconds": 1}},
                "target": {"column": "text", "type": "text"},
            },
            "model": {"type": "ctc", "halvings": 1},
        },
        source="here",
    )
    texts = {"train": [[1, 2, 3], [1]], "validation": [[2, 2]], "test": [[1, 2], [3, 3, 3]]}
    check(spec, prepared(tmp_path, {"train": [5, 1], "validation": [5], "test": [3, 9]}, texts))
    with pytest.raises(DataError, match=r"2 rows have fewer frames .* tokens, text: row 2, 4; .*lower model\.halvings"):
        check(spec, prepared(tmp_path, {"train": [5, 1], "validation": [4], "test": [3, 8]}, texts))
