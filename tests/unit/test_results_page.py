"""docs/results.md is what its records give, and its rows are the shipped specs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.results import PAGE, RECORDS, ROWS, has_reached, page

SPECS = Path(__file__).parents[2] / "jobs" / "specs"


def test_nothing_on_the_page_was_typed_by_hand() -> None:
    assert PAGE.read_text() == page(json.loads(RECORDS.read_text()))


def test_every_shipped_spec_has_a_row() -> None:
    assert {row.spec for row in ROWS} == {path.stem for path in SPECS.glob("*.yaml")}


def record(seed: int, **metrics: float) -> dict[str, Any]:
    return {"seed": seed, "run": "a", "seconds": 10 + seed, "workers": 2, "metrics": metrics}


def test_a_row_is_reached_by_the_mean_over_its_runs() -> None:
    rows = {row.spec: row for row in ROWS}
    near = [record(0, **{"test.accuracy": 0.96}), record(1, **{"test.accuracy": 0.951})]
    assert has_reached(rows["mnist"], near)
    assert not has_reached(rows["mnist"], near[1:])
    assert not has_reached(rows["mnist"], [])
    assert has_reached(rows["speech"], [record(0, **{"test.cer": 0.1})])
    assert not has_reached(rows["speech"], [record(0, **{"test.cer": 0.11})])
    beside = record(0, **{"test.r2": 0.44, "least_squares.r2": 0.445})
    assert has_reached(rows["diabetes"], [beside])
    assert not has_reached(rows["diabetes"], [record(0, **{"test.r2": 0.43, "least_squares.r2": 0.445})])
    text = page({"mnist": near, "diabetes": [beside], "speech": [record(0, **{"test.cer": 0.2, "unseen.cer": 0.4})]})
    assert "0.9555 ± 0.0064 | at least 0.955 |" in text
    assert "| 2 | 10 | 2 | yes |" in text
    assert "at least 0.435 | ordinary least squares" in text
    assert "- speech: unseen.cer 0.4000 ± 0.0000." in text
    assert text.count("**no**") == 1
