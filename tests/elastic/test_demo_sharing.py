"""`make demo-sharing` as a test: what it claims is read from what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from local_ray import own_surroundings
from ports import free_port

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]


def test_the_tide_comes_and_goes_and_nothing_is_lost(tmp_path: Path) -> None:
    written = tmp_path / "tide.json"
    command = [
        sys.executable,
        str(ROOT / "jobs" / "demo_sharing.py"),
        "--port",
        str(free_port()),
        "--json",
        str(written),
    ]
    with own_surroundings():
        # It starts a cluster with a token, as people do.
        surroundings = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=570)
        assert done.returncode == 0, done.stdout + done.stderr
        tide = json.loads(written.read_text())
        assert Path(tide["picture"]).stat().st_size > 0
    assert (tide["failed"], tide["steps_twice"]) == (0, 0)
    assert tide["digest"] == tide["undisturbed"]
    assert tide["resizes"] >= 2
    assert tide["answered"] > 100
    # Of four CPUs the endpoint's first replica holds one: of the others training is to hold nearly all before the tide.
    assert tide["lent_before"] >= 0.95
