"""What the README shows works as it stands: its shell and Python blocks are run in order, as one person would."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from ports import free_port
from stranger import Stranger
from tidegate.spec.document import parse
from tidegate.spec.run import Spec

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(README.read_text())


@pytest.mark.cluster
def test_the_readme_runs_from_top_to_bottom(stranger: Stranger) -> None:
    """One shell runs all blocks. `make` targets are CI's; activating is the fixture's; the port is a free one."""
    port = str(free_port())
    script = "set -euo pipefail\n"
    for language, text in blocks():
        if language == "bash":
            script += re.sub(r"^(make|source) .*$", "", text, flags=re.MULTILINE)
        elif language == "python":
            script += f"python - <<'PYTHON'\n{text}PYTHON\n"
    assert script.count("tidegate up ") == 1
    script = script.replace("tidegate up ", f"tidegate up --port {port} ").replace(
        "127.0.0.1:8000", f"127.0.0.1:{port}"
    )
    shown = stranger.run("bash", "-c", script).stdout
    assert '"platform":' in shown.replace(" ", "") or '"inputs"' in shown
    assert "digits@2" in shown, "the job registered the second version"
    assert "[0 1 2]" in shown, "the first three rows of the data are a zero, a one and a two"
    assert shown.rstrip().endswith("stopped")
    with (stranger.checkout / "answers.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert sum(row["target"] == row["predicted_target"] for row in answers) > 0.9 * len(answers) > 150
    batch = [
        row
        for path in sorted((stranger.checkout / "answers").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert [(row["alcohol"], str(row["predicted_target"])) for row in batch] == [
        (row["alcohol"], row["predicted_target"]) for row in answers
    ]
    manifests = (stranger.kept / "artifacts/digits").glob("*/artifact.json")
    digests = [json.loads(manifest.read_text())["digest"] for manifest in manifests]
    assert len(digests) == 3
    assert len(set(digests)) == 1, "the shell, a job and Python made different models of one spec"


def test_the_spec_of_the_readme_is_valid() -> None:
    (text,) = [text for language, text in blocks() if language == "yaml"]
    assert parse(Spec, yaml.safe_load(text), source="README").name == "digits"
