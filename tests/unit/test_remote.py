"""A cluster behind its Jobs API, as far as that goes without one. A real one is in tests/cluster."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tidegate import api, connection
from tidegate.cli.main import FORWARDED
from tidegate.cli.main import tidegate as shell
from tidegate.errors import ClusterError, ConflictError, SpecError, StoppedError, TidegateError
from tidegate.evaluation import ClassReport, Report
from tidegate.outcome import Outcome
from tidegate.registry import Version
from tidegate.remote import entry, jobs, run, words
from tidegate.remote.jobs import Jobs, Output
from tidegate.serving.status import EndpointStatus
from tidegate.spec.run import Spec, load, shipped
from tidegate.training.progress import News, Progress, Totals

ROOT = Path(__file__).parents[2]
VERSION = Version("digits", 3, "0" * 64, "/kept/digits", "digits-7f3", {"test.accuracy": 0.98}, ("production",), "now")
REPORT = Report("classification", 4, {"accuracy": 0.5}, ("a", "b"), [ClassReport("a", 2, 0.5, 0.5, 0.5)], [[1, 1]])
ENDPOINT = EndpointStatus("digits", "http://127.0.0.1:8000/v2/models/digits", "digits@production", 3, "ready", 1, "")


def spec(path: str, **more: Any) -> Spec:
    document = {
        "name": "digits",
        "data": {
            "source": {"path": path},
            "inputs": {"x": {"type": "number"}},
            "target": {"column": "y", "type": "number"},
        },
        "model": {"type": "linear"},
    }
    return Spec.model_validate(document | more)


def test_the_jobs_environment_is_that_of_the_shipped_one() -> None:
    shipped_one = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    assert shipped_one["env_vars"] == jobs.ENVIRONMENT


@pytest.mark.parametrize(
    "raised",
    [
        ConflictError("run d has finished", remedy="name another"),
        StoppedError("run d is stopped at step 7", expected="patience"),
        TidegateError("odd"),
    ],
)
def test_errors_come_back_as_they_were(raised: TidegateError) -> None:
    found = words.read_error(words.error(raised))
    assert (type(found), str(found), found.exit_code) == (type(raised), str(raised), raised.exit_code)


@pytest.mark.parametrize("kind", ["NoSuchError", "annotations", "ClassVar"])
def test_an_error_of_another_release_is_an_error_all_the_same(kind: str) -> None:
    told = json.dumps({"kind": kind, "happened": "odd", "expected": "", "remedy": ""})
    assert type(words.read_error(words.ERROR + told)) is ClusterError


def test_output_is_told_once_line_by_line_and_what_is_for_us_is_kept() -> None:
    told: list[str] = []
    output = Output(told.append)
    everything = f"Runtime env is setting up.\n{words.BEGUN}\nepoch 1\nepoch 2\n{words.result({'a': 1})}\nbye\n"
    for end in range(len(everything) + 1):
        output.take(everything[:end])
    assert told == ["epoch 1", "epoch 2", "bye"]
    assert (output.result, output.error) == ({"a": 1}, None)


def test_an_error_is_heard_once() -> None:
    told: list[str] = []
    output = Output(told.append)
    raised = ConflictError("run d has finished")
    output.take(f"{words.BEGUN}\nbefore\n{words.error(raised)}\nerror: run d has finished\n")
    assert told == ["before"]
    assert str(output.error) == "run d has finished"


def test_an_outcome_and_news_travel_as_json() -> None:
    outcome = Outcome("digits-7f3", VERSION, REPORT, ENDPOINT, ["test.accuracy is 0.5"])
    told = {
        "run": outcome.run,
        "version": asdict(VERSION),
        "report": REPORT.to_json(),
        "endpoint": asdict(ENDPOINT),
        "missed": outcome.missed,
    }
    assert run.outcome(words.read_result(words.result(told))) == outcome
    assert run.outcome(told | {"endpoint": None}).endpoint is None
    news = News(Progress(step=3, loss=0.5), [{"epoch": 1}], "training", Totals(resizes=2), 4, ["a line"], (1, 4), "no")
    assert run.news(json.loads(json.dumps(asdict(news)))) == news
    unknown = run.news(json.loads(json.dumps(asdict(News(Progress())))))
    assert math.isnan(unknown.progress.loss)


def test_every_call_of_the_client_is_one_of_the_entry() -> None:
    source = "".join(
        (ROOT / "platform" / "tidegate" / path).read_text() for path in ("api.py", "remote/run.py", "remote/keys.py")
    )
    called = {part.partition('"')[0] for part in source.split('.call("')[1:]} | {"train"}
    assert called == set(entry.CALLS)
    with pytest.raises(ClusterError, match="same release on both sides"):
        entry.call("evaluate", {})


def test_a_spec_is_shipped_with_what_the_other_machine_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOMEWHERE", raising=False)
    (tmp_path / "endpoint.yaml").write_text("name: digits\nmodel: digits@production\n")
    for path in ("/data/a.parquet", "s3://acme/a.parquet", "$SOMEWHERE/a.parquet", "~/a.parquet"):
        ready, notes = shipped(spec(path), tmp_path)
        assert (ready.data.source.path, notes) == (path, [])
    ready, notes = shipped(spec("a.parquet", publish={"endpoint": "endpoint.yaml"}), tmp_path)
    assert ready.data.source.path == f"{tmp_path}/a.parquet"
    assert notes == [
        "data.source.path: a.parquet is a path of this machine; "
        f"every node of the cluster must have {tmp_path}/a.parquet"
    ]
    assert ready.publish.endpoint.model == "digits@production"  # type: ignore[union-attr]
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(ready.model_dump(mode="json", exclude_unset=True)))
    assert load(file) == ready


@pytest.mark.parametrize("name", FORWARDED)
def test_commands_are_carried_out_far_away(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_far", None)
    monkeypatch.setenv("RAY_ADDRESS", "")
    done = CliRunner().invoke(shell, ["--address", "http://127.0.0.1:1", name, "digits", "--any"])
    assert isinstance(done.exception, ClusterError)
    assert "no cluster answers at http://127.0.0.1:1" in str(done.exception)
    shown = CliRunner().invoke(shell, ["--address", "http://127.0.0.1:1", name, "--help"])
    assert shown.output.startswith("Usage: tidegate")


@pytest.mark.parametrize("words", [["create", "acme"], ["list"], ["revoke", "12345678"]])
def test_keys_are_those_of_the_cluster_far_away(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Carried out by calls: words that are forwarded, and what they print, stand in a job's log."""
    monkeypatch.setattr(connection, "_far", None)
    monkeypatch.setenv("RAY_ADDRESS", "")
    done = CliRunner().invoke(shell, ["--address", "http://127.0.0.1:1", "keys", *words])
    assert isinstance(done.exception, ClusterError)
    assert "no cluster answers at http://127.0.0.1:1" in str(done.exception)
    assert done.output == ""


def test_what_cannot_be_done_far_away_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_far", None)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(SpecError, match="loop of your own"):
        api.train(spec("/a.parquet"), loop=lambda fit: None)
    for refused in (lambda: api.predict("digits", {}), api.capacity_report):
        with pytest.raises(ClusterError, match="not done through the Jobs API"):
            refused()
    with pytest.raises(ClusterError, match="no cluster answers"):
        api.train(spec("/a.parquet"))
    with pytest.raises(ClusterError, match="no cluster answers"):
        Jobs("http://127.0.0.1:1")


TOLD = {"run": "d", "version": asdict(VERSION), "report": REPORT.to_json(), "endpoint": None, "missed": []}


class Interrupted:
    """A Jobs API whose follower presses Ctrl-C, and then follows to the end."""

    presses = 1

    def follow(self, job: str, say: Any) -> Any:
        if self.presses:
            self.presses -= 1
            raise KeyboardInterrupt
        return TOLD


class Recorded:
    """A Jobs API of a cluster where the run's last job only let it go on."""

    def follow(self, job: str, say: Any) -> Any:
        return None

    def call(self, what: str, name: str) -> Any:
        assert (what, name) == ("outcome", "d")
        return TOLD


@pytest.mark.parametrize("job", ["d-1", None])
def test_what_no_job_tells_the_records_of_the_cluster_do(job: str | None) -> None:
    far = run.RemoteRun("d", spec("/a.parquet"), Recorded(), job)  # type: ignore[arg-type]
    assert far.wait(30) == VERSION


def test_ctrl_c_leaves_a_run_that_a_job_drives(capsys: pytest.CaptureFixture[str]) -> None:
    far = run.RemoteRun("d", spec("/a.parquet"), Interrupted(), "d-1")  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt, match="d is left as it is: tidegate logs d --follow looks again"):
        far.begin(follow=True)
    assert far.wait(30) == VERSION
    assert far.is_over
