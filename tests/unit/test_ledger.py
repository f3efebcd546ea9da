"""The ledger: what a worker notes, and nothing at all without a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tidegate.training.ledger import Ledger


def test_lines_name_step_shard_and_rows_at_once_readable(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "deep" / "ledger"), "digits-1a2b", 2)
    file = tmp_path / "deep" / "ledger" / f"digits-1a2b-2-{os.getpid()}.jsonl"
    ledger.note(0, 3, np.array([5, 1, 2**40]))
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 0, "shard": 3, "rows": [5, 1, 2**40]}
    ]
    ledger.note(1, 0, np.array([4]))
    assert len(file.read_text().splitlines()) == 2


def test_a_worker_that_comes_back_appends(tmp_path: Path) -> None:
    for step in range(2):
        Ledger(str(tmp_path), "run", 0).note(step, 0, np.array([step]))
    (file,) = tmp_path.iterdir()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [0, 1]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Ledger("", "run", 0).note(0, 0, np.array([1]))
    assert not list(tmp_path.iterdir())
