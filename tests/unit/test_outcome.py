"""What a run that somebody else carried came to, from real records."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tidegate import evaluation, handle, registry, settings, standing, tracking
from tidegate.errors import (
    ArtifactError,
    RequirementError,
    StoppedError,
    TidegateError,
    TrainingError,
    UnavailableError,
)
from tidegate.spec import document
from tidegate.spec.run import Spec
from tidegate.told import Told

SPEC: dict[str, Any] = {
    "name": "wine",
    "data": {
        "source": {"path": "/nowhere/wine.csv"},
        "inputs": {"ash": {"type": "number"}},
        "target": {"column": "kind", "type": "category"},
    },
    "model": {"type": "linear"},
    "evaluate": {"require": {"test.accuracy": {"at_least": 0.9}}},
}
REPORT = evaluation.report("classification", torch.eye(2), torch.tensor([0, 1]), classes=["a", "b"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEGATE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield settings.home()


@pytest.fixture
def run(home: Path) -> handle.FoundRun:
    name = f"wine-{secrets.token_hex(4)}"
    tracking.start_run(name, spec="name: wine", tags={"tidegate.model": "wine"})
    return handle.FoundRun(name, document.parse(Spec, SPEC, source="a test"))


def registered(run: handle.FoundRun, folder: Path, accuracy: float) -> Path:
    """Have the run register a version; the file of its report."""
    (folder / "about").mkdir()
    report = folder / "about" / "report.json"
    report.write_text(json.dumps(REPORT.to_json()))
    metrics = {"test.accuracy": accuracy}
    registry.register("wine", path=folder, digest=run.name, run_id=run.name, metrics=metrics, lineage={})
    tracking.finish_run(run.name, "finished")
    return report


def test_one_that_finished_has_its_version_and_report(run: handle.FoundRun, tmp_path: Path) -> None:
    registered(run, tmp_path, 0.95)
    assert run.wait(30).run_id == run.name
    assert run.outcome().report == REPORT
    assert run.is_over


def test_one_that_missed_what_its_spec_requires_says_so(run: handle.FoundRun, tmp_path: Path) -> None:
    registered(run, tmp_path, 0.5)
    assert run.outcome(30).version.digest == run.name
    with pytest.raises(RequirementError, match=r"test\.accuracy"):
        run.wait()


def test_a_damaged_report_is_named(run: handle.FoundRun, tmp_path: Path) -> None:
    registered(run, tmp_path, 0.95).write_text('{"task": ')
    with pytest.raises(ArtifactError, match=r"the report of wine@\d+ cannot be read"):
        run.wait(30)


@pytest.mark.parametrize(
    ("status", "last", "error", "says"),
    [
        ("failed", "failed: the source has no column ash", TrainingError, "failed: the source has no column ash"),
        ("failed", "epoch 3", TrainingError, "failed;"),
        ("killed", "stopped: by a person", StoppedError, "was stopped"),
    ],
)
def test_one_that_did_not_finish_raises_why(
    run: handle.FoundRun, status: str, last: str, error: type[TidegateError], says: str
) -> None:
    told = Told(settings.home() / "runs" / run.name)
    told.write(f"training\n{last}\n")
    tracking.finish_run(run.name, status)
    with pytest.raises(error, match=says):
        run.wait(30)


def test_one_that_goes_on_is_waited_for_until_its_driver_is_lost(
    run: handle.FoundRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried: dict[str, None] = {run.name: None}
    monkeypatch.setattr(standing, "_carried", lambda: carried)
    monkeypatch.setattr(handle, "LOOK_EVERY_S", 0.01)
    with pytest.raises(TimeoutError, match="still goes on"):
        run.wait(0.2)
    carried.clear()
    with pytest.raises(UnavailableError, match="has no driver any more"):
        run.wait(30)
