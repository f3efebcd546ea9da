"""Every private name of Ray taken away in turn: what stands on it is off and says so, and training goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.ray_internals import NAMES, RESIZE
from train_without import outcome_without

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def with_all(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest that a training comes to when nothing is missing; nothing is refused then."""
    outcome = outcome_without([], tmp_path_factory.mktemp("all"))
    assert (outcome["warnings"], outcome["resize"], outcome["endpoints"]) == ([], "", "")
    return str(outcome["digest"])


@pytest.mark.parametrize("name", NAMES)
def test_without_a_name_its_feature_is_off_and_training_goes_on(name: str, with_all: str, tmp_path: Path) -> None:
    outcome, feature = outcome_without([name], tmp_path), NAMES[name].feature
    told = outcome["endpoints"] if feature == "endpoints" else " ".join(outcome["warnings"] + outcome["said"])
    assert f"taken_away: {feature} is off" in told
    assert bool(outcome["resize"]) == (feature == RESIZE)
    assert outcome["digest"] == with_all
    assert outcome["restarts"] == 1
