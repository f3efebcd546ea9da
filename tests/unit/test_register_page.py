"""What the page on registering shows works as it stands."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny_bert
from tidegate import registry
from tidegate.cli.main import tidegate as command

DOCS = Path(__file__).parents[2] / "docs"


def test_registering_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom. What deploys is run on a cluster, by tests/cluster/test_serving.py."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / "register.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "nets.py").write_text(blocks[0][1])
    tiny_bert.write(tmp_path / "minilm")
    for name in ("HOME", "TIDEGATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    shown = ""
    try:
        for language, text in blocks[1:]:
            if language == "python" and "tg.deploy" not in text:
                exec(text, {"print": lambda *words: None})
            elif language == "bash":
                shown += "".join(in_the_shell(line) for line in text.splitlines() if line.startswith("tidegate "))
    finally:
        sys.modules.pop("nets", None)
    assert "not trained by Tidegate" in shown
    assert {(version.ref, version.aliases) for version in registry.versions()} == {
        ("minilm@1", ("production",)),
        ("net@2", ("production",)),
        ("net@1", ()),
    }


def in_the_shell(line: str) -> str:
    done = CliRunner().invoke(command, shlex.split(line)[1:], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output
