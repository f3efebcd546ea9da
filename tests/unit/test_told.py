"""What a run told is kept: with its time, bounded in size, and readable while it grows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tidegate import lifecycle, registry, told, tracking
from tidegate.cli.main import tidegate
from tidegate.console import Console
from tidegate.errors import ConflictError, NotFoundError
from tidegate.spec.run import Spec
from tidegate.told import BEFORE, LOG, Carrier, Told
from tidegate.training.checkpoint import MANIFEST
from tidegate.training.progress import News, Progress

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.*)")


def lines(text: str) -> list[str]:
    """The messages, without their times."""
    return [LINE.fullmatch(line)[1] for line in text.splitlines()]  # type: ignore[index]


def test_lines_and_epochs_are_kept_with_their_times(tmp_path: Path) -> None:
    with Console(Told(tmp_path / "run")) as console:
        console.say("preparing\nfor long")
        epoch = {"epoch": 1, "train.loss": 0.5}
        console.on_news(News(Progress(step=4, total_steps=8), [epoch], lines=["a worker was lost"]))
    Console(Told(tmp_path / "run")).say("going on")
    assert lines(told.text(tmp_path / "run")) == [
        "preparing",
        "for long",
        "epoch   1  train.loss 0.5000",
        "a worker was lost",
        "going on",
    ]


def test_the_log_is_bounded_and_the_newest_is_kept(tmp_path: Path) -> None:
    log = Told(tmp_path, limit=2000)
    for number in range(500):
        print(f"message {number}", file=log)
    kept = lines(told.text(tmp_path))
    assert kept == [f"message {number}" for number in range(500 - len(kept), 500)]
    assert len(kept) > 30
    assert {path.name for path in tmp_path.iterdir()} == {LOG, BEFORE}
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())


def test_a_log_that_cannot_be_written_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("no folder")
    log = Told(tmp_path / "run")
    for _ in range(3):
        print("lost", file=log)
    assert [record.message.startswith("the log of the run is not kept") for record in caplog.records] == [True]


def test_following_gives_every_line_once_over_a_change_of_files(tmp_path: Path) -> None:
    log = Told(tmp_path, limit=1000)
    written = 0

    def wait() -> None:
        nonlocal written
        for _ in range(7):
            print(f"message {written}", file=log)
            written += 1

    print("first", file=log)
    found = "".join(told.follow(tmp_path, lambda: written >= 140, wait))
    assert lines(found) == ["first", *(f"message {number}" for number in range(140))]


def test_what_is_written_just_before_the_end_is_followed_too(tmp_path: Path) -> None:
    log = Told(tmp_path)

    def is_over() -> bool:
        print("the last words", file=log)
        return True

    assert lines("".join(told.follow(tmp_path, is_over, lambda: None))) == ["the last words"]


def test_where_a_run_is_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Carrier.read(tmp_path) is None
    Carrier.here("01000000", "/tmp/ray/logs").write(tmp_path)
    labels = dict(Carrier.read(tmp_path).described())  # type: ignore[union-attr]
    assert labels["Ray's logs"].startswith("/tmp/ray/logs/worker-*-01000000-*")
    assert "its output" not in labels
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "digits-7f3-1"}}))
    assert ("its output", "ray job logs digits-7f3-1") in Carrier.here("01000000", "").described()
    (tmp_path / told.CARRIER).write_text("{")
    assert Carrier.read(tmp_path) is None


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("TIDEGATE_HOME", str(folder))
        for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        yield folder


def recorded(name: str, status: str) -> None:
    run = tracking.start_run(name, spec="name: digits", tags={"tidegate.model": "digits"})
    if status:
        tracking.finish_run(run, status)


def test_logs_of_a_run_that_has_ended(home: Path) -> None:
    recorded("digits-1", "failed")
    print("failed: it broke", file=Told(home / "runs" / "digits-1"))
    Carrier.here("01000000", "/tmp/ray/logs").write(home / "runs" / "digits-1")
    for options in ([], ["--follow"]):
        done = CliRunner().invoke(tidegate, ["logs", "digits-1", *options])
        assert lines(done.stdout) == ["failed: it broke"]
        assert "driver" in done.stderr
    missing = CliRunner().invoke(tidegate, ["logs", "digits-9"])
    assert isinstance(missing.exception, NotFoundError)
    assert "digits-1" in str(missing.exception)


def test_a_finished_run_is_refused_with_the_version_it_made(home: Path, tmp_path: Path) -> None:
    recorded("digits-2", "finished")
    with pytest.raises(ConflictError, match=r"^run digits-2 has finished; see `tidegate status digits-2`"):
        lifecycle.refuse_finished("digits-2")
    registry.register("digits", path=tmp_path, digest="0" * 64, run_id="digits-2", metrics={}, lineage={})
    with pytest.raises(ConflictError, match="run digits-2 has finished and made digits@1"):
        lifecycle.refuse_finished("digits-2")
    for name in ("digits-1", "digits-3"):
        lifecycle.refuse_finished(name)


@pytest.mark.parametrize(
    ("status", "why"), [("failed", "which failed"), ("killed", "which was stopped"), ("", "which lost its driver")]
)
def test_a_run_that_goes_on_says_from_where(home: Path, status: str, why: str) -> None:
    name = f"digits-of-{status}"
    recorded(name, status)
    spec = Spec.model_validate(
        {
            "name": "digits",
            "data": {
                "source": {"path": "a.csv"},
                "inputs": {"x": {"type": "number"}},
                "target": {"column": "y", "type": "number"},
            },
            "model": {"type": "linear"},
        }
    )
    said = lifecycle._resumed(spec, tracking.run(name))
    assert said == f"going on with run {name}, {why}, from the beginning: it left no checkpoint"
    for step in (7, 30):
        folder = home / "runs" / name / "checkpoints" / f"step-{step:09d}"
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text("{}")
    said = lifecycle._resumed(spec, tracking.run(name))
    assert said == f"going on with run {name}, {why}, from its checkpoint at step 30"
