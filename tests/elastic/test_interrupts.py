"""Ctrl-C at any moment of `tidegate train`: it says so, and the run goes on under its name to the very same model."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from typing import Any

import pytest

from ports import free_port
from stranger import Stranger

pytestmark = pytest.mark.cluster

SEED, MOMENTS = 20261123, 8


def digests(stranger: Stranger) -> set[str]:
    found = stranger.kept.glob("artifacts/digits/*/artifact.json")
    return {str(json.loads(path.read_text())["digest"]) for path in found}


def test_an_interrupt_at_any_moment_loses_nothing(stranger: Stranger) -> None:
    def short(document: dict[str, Any]) -> None:
        document["train"] |= {"epochs": 12, "workers": {"min": 1, "max": 1}, "checkpoint": {"every_steps": 50}}
        document["evaluate"]["require"] = {"test.accuracy": {"at_least": 0.8}}
        document["publish"] = {"alias": "production"}

    luck = random.Random(SEED)
    stranger.run("python", "jobs/datasets/digits.py")
    spec = stranger.write_spec(short)
    stranger.run("tidegate", "up", "--port", str(free_port()))
    began = time.monotonic()
    stranger.run("tidegate", "train", spec, "--name", "undisturbed")
    whole = time.monotonic() - began
    ended = []
    for number in range(MOMENTS):
        name = f"run-{number}"
        moment = whole * (number + luck.random()) / MOMENTS
        code, complaint = interrupted(stranger, ["tidegate", "train", spec, "--name", name], moment)
        ended.append(code)
        assert code in (130, 0), f"after {moment:.1f} s: {code}, {complaint}"
        # The first line ends that of the terminal's ^C.
        assert len(complaint.strip().splitlines()) <= 1, f"after {moment:.1f} s: {complaint}"
        if code:
            stranger.run("tidegate", "train", spec, "--name", name)
    assert ended.count(130) >= MOMENTS // 2, ended
    assert len(digests(stranger)) == 1
    versions = json.loads(stranger.run("tidegate", "models", "--json").stdout)
    assert sorted(version["run_id"] for version in versions) == sorted(
        ["undisturbed", *(f"run-{number}" for number in range(MOMENTS))]
    )
    # Nothing is held by runs that were interrupted.
    free = json.loads(stranger.run("tidegate", "status", "--json").stdout)
    assert free["available"]["CPU"] == free["total"]["CPU"]


def interrupted(stranger: Stranger, command: list[str], after_s: float) -> tuple[int, str]:
    """The exit code and the error lines of a command that gets SIGINT after so many seconds."""
    with subprocess.Popen(
        command,
        cwd=stranger.checkout,
        env=stranger.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            # As a terminal does: to all of its processes.
            os.killpg(process.pid, signal.SIGINT)
        _, complaint = process.communicate(timeout=300)
        return process.returncode, complaint
