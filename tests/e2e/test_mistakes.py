"""Mistakes that need a cluster, as a shell shows them: one line with what to do, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import socket
import subprocess
from typing import Any

import pytest

from ports import free_port
from stranger import Stranger

pytestmark = pytest.mark.cluster


def mistake(stranger: Stranger, *command: str) -> str:
    """The line that a command ends with."""
    done = stranger.run("tidegate", *command, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), (command, done.returncode, done.stderr)
    assert done.stderr.startswith("error: ")
    return done.stderr


def at_once(stranger: Stranger, *commands: list[str]) -> list[tuple[int, str]]:
    """Exit codes and error lines of commands that run side by side, those that succeeded first."""
    processes = [
        subprocess.Popen(
            ["tidegate", *command],
            cwd=stranger.checkout,
            env=stranger.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    complaints = [process.communicate(timeout=300)[1] for process in processes]
    return sorted((process.returncode, complaint) for process, complaint in zip(processes, complaints, strict=True))


def short(document: dict[str, Any]) -> None:
    document["train"] |= {"epochs": 12, "workers": {"min": 1, "max": 1}}
    document["evaluate"]["require"] = {"test.accuracy": {"at_least": 0.8}}
    document["publish"] = {"alias": "production"}


def test_mistakes_with_a_cluster(stranger: Stranger) -> None:
    stranger.run("python", "jobs/datasets/digits.py")
    spec = stranger.write_spec(short)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in mistake(stranger, "up", "--port", str(port))
    stranger.run("tidegate", "up", "--port", str(free_port()))

    two = at_once(stranger, *[["train", spec, "--name", "same"]] * 2)
    assert [code for code, _ in two] == [0, 2], two
    assert "run same is being trained by another process" in two[1][1] or "run same has finished" in two[1][1]
    assert "run same has finished and made digits@1" in mistake(stranger, "train", spec, "--name", "same")

    deploys = at_once(stranger, *[["deploy", "deployments/digits.yaml"]] * 2)
    assert deploys[0][0] == 0, deploys
    assert deploys[1][0] == 0 or "deployed again" in deploys[1][1], deploys
    (endpoint,) = json.loads(stranger.run("tidegate", "endpoints", "--json").stdout)
    assert (endpoint["name"], endpoint["status"]) == ("digits", "ready")

    (stranger.checkout / "rows.csv").write_text("pixels\n1\n")
    assert "no endpoint 'digts'; expected one of digits" in mistake(stranger, "endpoints", "remove", "digts")
    assert "digts" in mistake(stranger, "predict", "digts", "rows.csv")
    assert "expected one of digits" in mistake(stranger, "models", "show", "digts")
    assert "digits has no version or alias '7'" in mistake(stranger, "models", "show", "digits@7")
    assert "digits has no version or alias '7'" in mistake(stranger, "models", "alias", "digits@7", "x", "--why", "y")
    assert "no run 'sane'; expected one of same" in mistake(stranger, "status", "sane")
    (stranger.checkout / "unknown.yaml").write_text("name: other\nmodel: digts@production\n")
    assert "digts" in mistake(stranger, "deploy", "unknown.yaml")
    assert "ready" in stranger.run("tidegate", "endpoints").stdout
