"""How a run stands: which of what is known counts, and how it is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tidegate.standing import Standing, described, facts, short
from tidegate.tracking import RunRecord
from tidegate.training.progress import Last, News, Phase, Progress, Totals

RECORD = RunRecord(
    run_id="0" * 32,
    name="digits-7f3",
    status="running",
    started="2026-11-22T10:00:00.000+00:00",
    ended=None,
    params={},
    tags={"tidegate.model": "digits"},
    metrics={"test.accuracy": 0.98, "test.recall.0": 0.9, "validation.accuracy": 0.97},
)
PROGRESS = Progress(
    step=120, total_steps=400, epoch=3, epochs=10, loss=0.05, rows_per_s=4033.0, workers=2, seconds_left=62.0
)
TOTALS = Totals(
    groups=3,
    resizes=1,
    restarts=2,
    steps_twice=14,
    training_s=182.0,
    checkpointing_s=2.0,
    restarting_s=9.0,
    checkpoints=5,
)
NEWS = News(PROGRESS, phase="training", totals=TOTALS, bounds=(1, 4))
LAST = Last(replace(PROGRESS, step=110), Totals(groups=1))


def carried(news: News | None, last: Last | None = LAST) -> Standing:
    return Standing(RECORD, last, news, is_carried=True)


@pytest.mark.parametrize(
    ("standing", "status"),
    [
        (Standing(replace(RECORD, status="finished"), LAST), "finished"),
        (Standing(replace(RECORD, status="failed"), LAST), "failed"),
        (Standing(replace(RECORD, status="killed"), LAST), "stopped"),
        (Standing(RECORD, LAST), "interrupted"),
        (Standing(RECORD, LAST, unasked="no cluster is running"), "running?"),
        (carried(None), "running"),
        (carried(NEWS), "training"),
        (carried(replace(NEWS, phase="paused")), "paused"),
        # The driver has recorded the end and is about to go.
        (Standing(replace(RECORD, status="finished"), LAST, replace(NEWS, phase="finishing"), True), "finished"),
    ],
)
def test_the_status(standing: Standing, status: str) -> None:
    assert standing.status == facts(standing)["status"] == status


def test_a_run_that_trains() -> None:
    standing = carried(replace(NEWS, wanted=4))
    assert short(standing) == "training, 2 workers"
    assert described(standing, None) == [
        ("run", "digits-7f3"),
        ("status", "training, 2 workers (may have 1 to 4; 4 asked for)"),
        ("step", "120 of 400, epoch 3 of 10, loss 0.0500"),
        ("speed", "4,033 samples/s, 1 min 2 s left"),
        ("changes", "1 resize, 2 restarts, 0 pauses; 14 steps computed twice"),
        ("time", "3 min 2 s training, 2 s checkpointing, 9 s restarting"),
        ("checkpoints", "5 written"),
        ("started", "2026-11-22T10:00:00 UTC"),
        ("test", "accuracy 0.9800"),
    ]


@pytest.mark.parametrize(
    ("news", "shown"),
    [
        (NEWS, "training, 2 workers (may have 1 to 4)"),
        (replace(NEWS, wanted=2), "training, 2 workers (may have 1 to 4)"),
        (replace(NEWS, bounds=(2, 2)), "training, 2 workers"),
        (replace(NEWS, phase="starting", wanted=3), "starting workers (may have 1 to 4; 3 asked for)"),
        (None, "running, but its driver does not answer"),
    ],
)
def test_the_size_is_told_with_its_bounds_and_what_is_asked(news: News | None, shown: str) -> None:
    assert dict(described(carried(news), None))["status"] == shown


def test_a_run_whose_driver_is_gone_stands_where_that_left_it() -> None:
    standing = Standing(RECORD, LAST)
    lines = dict(described(standing, None))
    assert lines["status"] == "interrupted: no driver in this cluster carries it"
    assert lines["step"].startswith("110 of 400")
    assert lines["to go on"] == "tidegate resume digits-7f3"
    assert "speed" not in lines
    known = facts(standing)
    assert (known["step"], known["samples_per_s"], known["workers"], known["wanted"]) == (110, None, None, None)


@pytest.mark.parametrize("phase", ["preparing", "waiting", "starting"])
def test_a_driver_that_has_no_workers_yet_stands_where_the_one_before_left_the_run(phase: Phase) -> None:
    standing = carried(News(Progress(), phase=phase, totals=replace(LAST.totals, pauses=1)))
    assert (facts(standing)["step"], facts(standing)["pauses"]) == (110, 1)


def test_a_run_that_waits_says_for_what() -> None:
    note = "1. in the queue: waits: it needs 6 x 1 CPU, there is room for 2"
    lines = dict(described(carried(News(Progress(), phase="waiting", note=note)), None))
    assert lines["status"].startswith(f"waiting for room: {note}")


def test_a_run_that_ended() -> None:
    ended = replace(RECORD, status="finished", ended="2026-11-22T10:05:00.000+00:00")
    lines = dict(described(Standing(ended, LAST), "digits@3"))
    assert (lines["ended"], lines["version"], lines["test"]) == (
        "2026-11-22T10:05:00 UTC",
        "digits@3",
        "accuracy 0.9800",
    )
    assert "to go on" not in lines
    stopped = dict(described(Standing(replace(ended, status="killed"), LAST), None))
    assert stopped["to go on"] == "tidegate resume digits-7f3"


def test_a_run_that_was_resumed_has_not_ended() -> None:
    resumed = replace(RECORD, ended="2026-11-22T10:05:00.000+00:00")
    assert facts(Standing(resumed, LAST))["ended"] is None
    assert "ended" not in dict(described(Standing(resumed, LAST), None))


def test_nothing_known_is_null_and_the_loss_that_is_none_too() -> None:
    nothing = facts(Standing(RECORD, None))
    assert [nothing[key] for key in ("step", "total_steps", "epoch", "loss", "samples_per_s")] == [None] * 5
    assert facts(carried(replace(NEWS, progress=replace(PROGRESS, loss=float("nan")))))["loss"] is None
    for standing in (Standing(RECORD, None), carried(NEWS), carried(None, None)):
        json.dumps(facts(standing), allow_nan=False)
