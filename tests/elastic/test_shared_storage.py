"""A node of another machine that does not see what a run keeps: another host name, and an empty disk where home is."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ports import free_port
from stranger import BIN, Stranger

pytestmark = pytest.mark.cluster

ELSEWHERE = (
    "hostname elsewhere && mount -t tmpfs none {hidden} && exec {ray} start --address={address} --block --num-cpus=1"
)


@contextmanager
def another_machine(stranger: Stranger, hidden: Path) -> Iterator[None]:
    """A node of the stranger's cluster that sees nothing of the folder `hidden`."""
    shell = stranger.run("tidegate", "env").stdout
    exported = dict(line.removeprefix("export ").split("=", 1) for line in shell.splitlines())
    script = ELSEWHERE.format(hidden=hidden, ray=BIN / "ray", address=exported["RAY_ADDRESS"])
    command = ["unshare", "-rmu", "bash", "-c", f"{script} --node-ip-address=127.0.0.2"]
    with (stranger.home / "node.log").open("w") as out:
        process = subprocess.Popen(
            command, env=stranger.environment | exported, stdout=out, stderr=out, start_new_session=True
        )
        try:
            until(lambda: stranger.run("tidegate", "status").stdout.count("2 nodes") == 1)
            yield
        finally:
            process.terminate()
            process.wait(60)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        time.sleep(1)


def test_local_storage_on_several_nodes_is_refused_before_anything_is_done(stranger: Stranger) -> None:
    def short(document: dict[str, Any]) -> None:
        document["train"] |= {"epochs": 1, "workers": {"min": 1, "max": 1}}
        document["evaluate"]["require"] = {}

    stranger.run("python", "jobs/datasets/digits.py")
    spec = stranger.write_spec(short)
    stranger.run("tidegate", "up", "--cpus", "2", "--port", str(free_port()))
    with another_machine(stranger, stranger.kept):
        done = stranger.run("tidegate", "train", spec, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"1 of 2 nodes (127.0.0.2) does not see {stranger.kept} of this machine" in done.stderr
        assert "mount one storage at one path of every node" in done.stderr
        assert "no runs yet" in stranger.run("tidegate", "runs").stdout
    outside = stranger.home.parent / "data"
    outside.mkdir()
    os.replace(stranger.kept / "data/digits.parquet", outside / "digits.parquet")
    stranger.write_spec(lambda document: document["data"]["source"].update(path=str(outside / "digits.parquet")))
    with another_machine(stranger, outside):
        done = stranger.run("tidegate", "train", spec, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"does not see the source {outside / 'digits.parquet'}" in done.stderr
