"""A run's numbers have one meaning wherever they are shown, and the page on runs explains each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tidegate.standing import Standing, facts
from tidegate.tracking import RunRecord
from tidegate.training.gauges import DESCRIPTIONS, numbers
from tidegate.training.progress import News, Progress, Totals

PAGE = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
PROGRESS = Progress(step=120, total_steps=400, loss=0.05, rows_per_s=4033.0, workers=2)
TOTALS = Totals(**{field.name: 10 + place for place, field in enumerate(dataclasses.fields(Totals))})
NEWS = News(PROGRESS, phase="training", totals=TOTALS, bounds=(1, 4))


def test_every_number_that_is_described_is_shown_once_it_is_known() -> None:
    assert set(numbers(NEWS)) == set(DESCRIPTIONS)
    assert set(DESCRIPTIONS) - set(numbers(News(Progress()))) == {"step", "loss"}


def test_the_size_that_is_wanted_is_the_most_there_may_be_until_somebody_asks() -> None:
    assert numbers(NEWS)["workers_wanted"] == 4
    assert numbers(dataclasses.replace(NEWS, wanted=3))["workers_wanted"] == 3


def test_prometheus_mlflow_and_status_tell_the_same() -> None:
    shown, logged = numbers(NEWS), NEWS.measured()
    record = RunRecord("", "digits", "running", "", None, {}, {}, {})
    known = facts(Standing(record, None, NEWS, is_carried=True))
    pairs = {
        "workers": "workers",
        "samples_per_second": "samples_per_s",
        "resizes": "resizes",
        "restarts": "restarts",
        "pauses": "pauses",
        "steps_computed_twice": "steps_twice",
        "seconds_training": "training_s",
        "seconds_checkpointing": "checkpointing_s",
        "seconds_restarting": "restarting_s",
    }
    assert {f"run.{name}" for name in pairs.values()} == set(logged)
    for gauge, name in pairs.items():
        assert shown[gauge] == logged[f"run.{name}"] == known[name]


def test_the_page_on_runs_names_every_number() -> None:
    record = RunRecord("", "digits", "running", "", None, {}, {}, {})
    names = {f"ray_tidegate_run_{name}" for name in DESCRIPTIONS} | set(NEWS.measured())
    names |= set(facts(Standing(record, None, NEWS, is_carried=True)))
    assert {name for name in names if f"`{name}`" not in PAGE} == set()
