"""A cluster that is reached through its Jobs API: a run from submission to version, with and without a token."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from sklearn import datasets

from ports import free_port
from tidegate import cluster

pytestmark = pytest.mark.cluster

PYTHON_DOOR = """
import json, sys
import tidegate as tg
tg.connect(sys.argv[1])
version = tg.train("iris.yaml", follow=False).wait(180)
told = {"version": version.ref, "metrics": version.metrics}
found = tg.get_run(version.run_id)
found.job = None  # as of a run that was started on the cluster itself
told["found"] = found.wait(60).ref
try:
    tg.train("iris.yaml", name=version.run_id)
except tg.TidegateError as error:
    told["second"] = [type(error).__name__, str(error)]
print(json.dumps(told))
"""


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home, and beside it a folder with a spec, its data and a module of a person's own."""
    for name, value in {"HOME": "home", "TIDEGATE_HOME": "home/tidegate"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    rows, kinds = datasets.load_iris(return_X_y=True)
    lines = [",".join(map(str, [*row, f"k{kind}"])) for row, kind in zip(rows, kinds, strict=True)]
    (work / "iris.csv").write_text("\n".join(["a,b,c,d,kind", *lines]))
    spec = {
        "name": "iris",
        "data": {
            "source": {"path": "iris.csv"},
            # Not in the order of their names, which must not matter.
            "inputs": {name: {"type": "number"} for name in "dbca"},
            "target": {"column": "kind", "type": "category"},
        },
        "model": {"type": "linear"},
        "train": {"epochs": 3, "global_batch": 30, "shards": 1, "workers": {"min": 1, "max": 1}},
    }
    (work / "iris.yaml").write_text(yaml.safe_dump(spec))
    yield work
    cluster.down()


def tidegate(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = "from tidegate.cli.main import main; main()"
    return _python(folder, "-c", program, *words)


def _python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


def test_with_a_token_a_run_is_trained_from_afar_and_refused_a_second_time(folder: Path) -> None:
    url = cluster.up(cpus=4, gpus=0, serve_port=free_port(), auth="token").dashboard_url
    done = _python(folder, "-c", PYTHON_DOOR, url)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["version"] == "iris@1"
    assert told["found"] == told["version"]
    assert "test.accuracy" in told["metrics"]
    kind, second = told["second"]
    assert kind == "ConflictError"
    assert "has finished and made iris@1;" in second
    assert f"every node of the cluster must have {folder}/iris.csv" in done.stdout
    assert "Runtime env" not in done.stdout + done.stderr

    found = {one["name"]: one for one in json.loads(tidegate(folder, "doctor", "--json").stdout)}
    assert all(one["state"] == "ok" for one in found.values() if one["name"] not in ("memory", "storage")), found
    assert "the cluster takes" in found["authentication"]["what"]
    assert found["flags"]["what"].startswith("those of `tidegate up`")


def test_without_a_token_a_detached_run_is_followed_by_its_log(folder: Path) -> None:
    url = cluster.up(cpus=4, gpus=0, serve_port=free_port(), auth="disabled").dashboard_url
    begun = tidegate(folder, "--address", url, "train", "iris.yaml", "--detach")
    assert begun.returncode == 0, begun.stderr
    run = begun.stdout.splitlines()[-1]
    logs = tidegate(folder, "logs", run, "--follow")
    assert logs.returncode == 0, logs.stderr
    assert "epoch   3" in logs.stdout
    assert logs.stdout.splitlines()[-1].endswith("finished: iris@1")
    assert f"ray job logs {run}-" in logs.stderr
