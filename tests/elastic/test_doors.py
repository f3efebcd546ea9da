"""One spec through three doors (shell, Ray job, Python), each in a home of its own: one model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from ports import free_port
from stranger import Stranger

pytestmark = pytest.mark.cluster

PYTHON_DOOR = """
import tidegate as tg
tg.connect()
run = tg.train("jobs/specs/varied.yaml", follow=False)
version = run.wait()
print("digest", version.digest)
assert [v.ref for v in tg.versions("digits")] == [version.ref]
"""


def quick(workers: tuple[int, int]) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["train"] |= {"epochs": 12, "workers": {"min": workers[0], "max": workers[1]}}
        document["evaluate"]["require"] = {"test.accuracy": {"at_least": 0.93}}
        del document["publish"]

    return change


def digest_of(stranger: Stranger) -> str:
    manifests = list((stranger.kept / "artifacts/digits").glob("*/artifact.json"))
    assert len(manifests) == 1
    return str(json.loads(manifests[0].read_text())["digest"])


def through_the_shell(stranger: Stranger) -> None:
    stranger.write_spec(quick((1, 1)))
    stranger.run("tidegate", "up", "--port", str(free_port()), "--auth", "token")
    shown = stranger.run("tidegate", "train", "jobs/specs/varied.yaml").stdout
    assert re.search(r"^digits@1  test accuracy 0\.9\d+, test f1 0\.9\d+  digest [0-9a-f]{12}$", shown, re.MULTILINE), (
        shown
    )
    assert "digits@1" in stranger.run("tidegate", "models").stdout
    assert "finished" in stranger.run("tidegate", "runs").stdout


def through_a_job(stranger: Stranger) -> None:
    stranger.write_spec(quick((2, 2)))
    stranger.run("tidegate", "up", "--port", str(free_port()), "--auth", "token")
    submit = "ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml"
    train = "python jobs/train.py jobs/specs/varied.yaml"
    shown = stranger.run("bash", "-c", f'eval "$(tidegate env)" && {submit} -- {train}').stdout
    assert "succeeded" in shown
    assert "digits@1" in shown


def through_python(stranger: Stranger) -> None:
    stranger.write_spec(quick((1, 2)))
    stranger.run("tidegate", "up", "--port", str(free_port()), "--auth", "disabled")
    stranger.run("python", "-c", PYTHON_DOOR)


def test_three_doors_make_the_same_model(new_stranger: Callable[[], Stranger]) -> None:
    """Different homes, doors, authentication and numbers of workers; the same spec and seed."""
    digests = []
    for door in (through_the_shell, through_a_job, through_python):
        stranger = new_stranger()
        stranger.run("python", "jobs/datasets/digits.py")
        door(stranger)
        digests.append(digest_of(stranger))
        stranger.run("tidegate", "down")
    assert len(set(digests)) == 1, digests
