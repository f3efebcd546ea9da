"""What the arbiter tells people."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.scheduling.arbiter import Rules
from tidegate.scheduling.policy import Decision
from tidegate.scheduling.report import Event, Report, holders
from tidegate.scheduling.snapshot import Deployment, Node, Run, Snapshot
from tidegate.scheduling.timeline import Sample, device_of, sample

GPU = {"GPU": 1.0}
SNAPSHOT = Snapshot(
    (Node("a", {"GPU": 8.0, "CPU": 4.0}, {"GPU": 1.0}),),
    (Deployment("app/model", {"GPU": 0.5}, ("a", "a"), pending=1),),
    (Run("digits-1", GPU, 1, 6, nodes=("a",) * 4),),
)


def test_devices_are_counted_by_who_holds_them() -> None:
    assert device_of(SNAPSHOT) == "GPU"
    assert sample(SNAPSHOT, 7.0) == Sample(7.0, training=4, serving=1, changing=0.5, other=1.5, free=1)


def test_a_cluster_without_gpus_counts_cpus() -> None:
    assert device_of(Snapshot((Node("a", {"CPU": 4.0}, {}),))) == "CPU"


def test_a_report_says_who_has_what_who_wants_what_and_why() -> None:
    decision = Decision({"digits-1": 3}, {}, {"digits-1": "gives 1 to app/model"}, ("late",), ())
    events = [Event(0.0, "digits-1", "gives 1 to app/model")]
    report = Report("GPU", holders(SNAPSHOT, decision), decision.queue, events, [sample(SNAPSHOT, 7.0)], trouble="oh")
    lines = report.explain().splitlines()
    assert lines[0] == "8 GPU: 4 training, 1 serving, 0.5 changing, 1.5 others, 1 free"
    assert lines[1] == "  serving  app/model: 2 x 0.5 GPU, wants 1 more"
    assert lines[2] == "  training digits-1: 4 x 1 GPU, wants 2 more (gives 1 to app/model)"
    assert lines[3] == "1. in the queue: late"
    assert lines[4].endswith("digits-1: gives 1 to app/model")
    assert lines[5] == "oh"


def test_before_anything_was_seen_there_is_a_report_too() -> None:
    assert Report("CPU").explain() == "no CPU seen yet"


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    return Rules(tmp_path / "capacity.yaml")


def test_rules_are_read_again_when_their_file_changes(rules: Rules) -> None:
    assert rules.read().cool_down_s == 30
    rules.path.write_text("cool_down_s: 5\n")
    assert rules.read().cool_down_s == 5
    rules.path.unlink()
    assert rules.read().cool_down_s == 30


@pytest.mark.parametrize("text", ["cool_down_s: soon", "cooldown: 5", ": :", "training: {floor: {GPU: -1}}"])
def test_rules_that_cannot_be_read_leave_those_of_before(rules: Rules, text: str) -> None:
    rules.path.write_text("cool_down_s: 5\n")
    rules.read()
    rules.path.write_text(text)
    # Some file systems tell seconds only.
    rules._seen = 0.0
    assert rules.read().cool_down_s == 5
    assert "capacity.yaml" in rules.trouble
    rules.path.write_text("cool_down_s: 6\n")
    rules._seen = 0.0
    assert rules.read().cool_down_s == 6
    assert not rules.trouble
