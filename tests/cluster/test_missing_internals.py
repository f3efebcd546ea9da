"""Training on a Ray without some private names: what stands on them is off and says so, the rest goes on.

One name at a time is in tests/elastic.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.ray_internals import NAMES, RESIZE
from train_without import outcome_without

pytestmark = pytest.mark.cluster


def test_without_what_resizing_stands_on_a_run_keeps_its_size_and_says_so(tmp_path: Path) -> None:
    outcome = outcome_without((name for name, private in NAMES.items() if private.feature == RESIZE), tmp_path)
    assert f"{RESIZE} is off" in outcome["said"][0]
    assert "cannot be resized" in outcome["resize"]
    assert outcome["restarts"] == 1
