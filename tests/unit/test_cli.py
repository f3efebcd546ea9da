"""The shell's view: help, exit codes, one line an error. No cluster is needed for any of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TIDEGATE = str(Path(sys.executable).parent / "tidegate")
ROOT = Path(__file__).parents[2]


def tidegate(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TIDEGATE_"))}
    environment = {**inherited, "HOME": str(home), "TIDEGATE_HOME": str(home / "kept"), **variables}
    return subprocess.run(
        [TIDEGATE, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [[], ["up"], ["train"], ["models", "alias"], ["endpoints", "remove"], ["predict"], ["spec", "check"]],
)
def test_help_says_what_a_command_does(arguments: list[str], tmp_path: Path) -> None:
    done = tidegate(tmp_path, *arguments, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: tidegate")
    assert done.stderr == ""


def test_a_wrong_spec_is_refused_with_every_mistake(tmp_path: Path) -> None:
    spec = tmp_path / "wrong.yaml"
    spec.write_text(
        "name: Digits\nsed: 3\ndata: {source: {path: a.csv}, inputs: {x: {type: numbr}}}\nmodel: {type: mlp}\n"
    )
    done = tidegate(tmp_path, "train", str(spec))
    assert done.returncode == 2
    assert done.stdout == ""
    for part in (
        "4 mistakes",
        "name: found 'Digits'",
        "sed: unknown key; did you mean 'seed'?",
        "data.target: missing",
        "numbr",
    ):
        assert part in done.stderr


def test_spec_check_and_schema(tmp_path: Path) -> None:
    done = tidegate(tmp_path, "spec", "check", "jobs/specs/digits.yaml", "deployments/digits.yaml")
    assert done.stdout == "jobs/specs/digits.yaml: fine\ndeployments/digits.yaml: fine\n"
    schema = json.loads(tidegate(tmp_path, "spec", "schema").stdout)
    assert set(schema["required"]) == {"name", "data", "model"}


@pytest.mark.parametrize("arguments", [["status"], ["endpoints"], ["deploy", "deployments/digits.yaml"]])
def test_without_a_cluster_the_remedy_is_named(arguments: list[str], tmp_path: Path) -> None:
    done = tidegate(tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr == "error: no cluster is running; start one with `tidegate up` or set RAY_ADDRESS\n"


def test_a_traceback_on_request(tmp_path: Path) -> None:
    done = tidegate(tmp_path, "train", "nowhere.yaml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    shown = tidegate(tmp_path, "train", "nowhere.yaml", TIDEGATE_TRACEBACK="1").stderr
    assert "Traceback" in shown
    assert "nowhere.yaml cannot be read" in shown


def test_a_wrong_setting_is_one_line_too(tmp_path: Path) -> None:
    done = tidegate(tmp_path, "train", "nowhere.yaml", TIDEGATE_TRACEBACK="maybe")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_an_empty_home_says_what_to_do_next(tmp_path: Path) -> None:
    assert tidegate(tmp_path, "down").stdout.startswith("nothing to stop")
    assert tidegate(tmp_path, "models").stdout == "no models yet: tidegate train SPEC\n"
    assert tidegate(tmp_path, "runs").stdout == "no runs yet: tidegate train SPEC\n"
    missing = tidegate(tmp_path, "models", "show", "digits@3")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: no model 'digits'") or "digits" in missing.stderr


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"rubbish")
    assert "cannot be read" in tidegate(tmp_path, "predict", "digits", str(tmp_path / "rows.parquet")).stderr
    assert "no known kind" in tidegate(tmp_path, "predict", "digits", str(tmp_path / "rows.txt")).stderr


def test_where_answers_go_is_checked_first(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("x\n1\n")
    assert "no known kind" in tidegate(tmp_path, "predict", "digits", str(rows), "-o", "out.xls").stderr
    assert "no folder /nowhere" in tidegate(tmp_path, "predict", "digits", str(rows), "-o", "/nowhere/out.csv").stderr
