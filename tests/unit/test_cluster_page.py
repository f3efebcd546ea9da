"""What the pages on the cluster and on operations show exists: commands, names and flags."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import click
import pytest

import tidegate as tg
from tidegate.cli.main import tidegate
from tidegate.cluster_environment import NODE_FLAGS, NODE_PROGRAMS

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CLUSTER = BLOCK.findall((DOCS / "cluster.md").read_text())
OPERATIONS = BLOCK.findall((DOCS / "operations.md").read_text())
SHELL = [line for language, text in CLUSTER + OPERATIONS if language == "bash" for line in text.splitlines()]


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("tidegate")])
def test_commands_of_the_pages_are_there(line: str) -> None:
    """Parsed as they stand, and not run."""
    words, command = shlex.split(line, comments=True)[1:], click.Context(tidegate)
    if words[0] == "--address":
        words = words[2:]
    group: Any = tidegate
    while isinstance(group, click.Group) and words and words[0] in group.commands:
        group = group.commands[words.pop(0)]
    assert group is not tidegate, line
    group.make_context(group.name, words, parent=command)


def test_flags_of_the_page_on_the_cluster_are_those_of_every_node() -> None:
    shown = [shlex.split(line)[1].split("=", 1) for line in SHELL if line.startswith("export RAY_")]
    assert {name: value for name, value in shown if name != "RAY_ADDRESS"} == NODE_FLAGS | NODE_PROGRAMS


def test_python_of_the_page_on_the_cluster_names_what_exists() -> None:
    (text,) = [text for language, text in CLUSTER if language == "python"]
    tree = ast.parse(text)
    attributes = [
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    places = {"tg": tg, "run": tg.Run}
    assert {node.value.id for node in attributes} == set(places)  # type: ignore[attr-defined]
    for node in attributes:
        assert hasattr(places[node.value.id], node.attr), node.attr  # type: ignore[attr-defined]


def test_the_backup_of_the_page_has_all_but_what_is_made_anew(tmp_path: Path) -> None:
    (line,) = [line for line in SHELL if line.startswith("tar ")]
    for file in ("mlflow.db", "artifacts/digits/prepared/a.txt", "prepared/ab12/rows.bin"):
        path = tmp_path / ".tidegate" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, check=True
    )
    with tarfile.open(tmp_path / "tidegate-backup.tar.gz") as archive:
        files = {member.name for member in archive if member.isfile()}
    assert files == {".tidegate/mlflow.db", ".tidegate/artifacts/digits/prepared/a.txt"}
