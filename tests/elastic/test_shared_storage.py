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

from grounds import started, wait_for
from ports import free_port
from stranger import BIN, Stranger

pytestmark = pytest.mark.cluster

# In name spaces of its own: another host name, and disks of its own over the folders until flags say otherwise.
OTHER = """
hostname elsewhere
for folder in {folders}; do
  mount -t tmpfs none $folder
  (until [ -e {flag}-$(basename $folder) ]; do sleep 0.5; done; umount $folder) &
done
exec {ray} start --address={address} --block --num-cpus=1
"""


@contextmanager
def another_machine(stranger: Stranger, address: str, variables: dict[str, str], *folders: Path) -> Iterator[None]:
    """A node of the cluster at `address` that sees nothing of these folders until `see` is called for them."""
    names = " ".join(map(str, folders))
    script = OTHER.format(folders=names, flag=stranger.home / "see", ray=BIN / "ray", address=address)
    with (stranger.home / "node.log").open("w") as out:
        process = subprocess.Popen(
            ["unshare", "-rmu", "bash", "-c", script],
            env=stranger.environment | variables,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            until(lambda: "2 nodes" in stranger.run("tidegate", "status", RAY_ADDRESS=address, **variables).stdout)
            yield
        finally:
            for folder in folders:
                see(stranger, folder)
            process.terminate()
            process.wait(60)


def see(stranger: Stranger, folder: Path) -> None:
    """The other machine sees the folder from now on."""
    (stranger.home / f"see-{folder.name}").touch()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        time.sleep(1)


def refused(stranger: Stranger, spec: str, address: str, variables: dict[str, str]) -> str:
    """The line with which a run does not begin."""
    done = stranger.run("tidegate", "train", spec, check=False, RAY_ADDRESS=address, **variables)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    return done.stderr


def test_local_storage_on_several_nodes_is_refused_before_anything_is_done(stranger: Stranger) -> None:
    def short(document: dict[str, Any]) -> None:
        document["train"] |= {"epochs": 1, "workers": {"min": 1, "max": 1}}
        document["evaluate"]["require"] = {}

    stranger.run("python", "jobs/datasets/digits.py")
    spec = stranger.write_spec(short)
    outside = stranger.home.parent / "data"
    outside.mkdir()
    variables = {"RAY_AUTH_MODE": "disabled"}
    with started(stranger, variables) as address:
        wait_for(address)
        variables["TIDEGATE_SERVE_PORT"] = str(free_port())
        with another_machine(stranger, address, variables, stranger.kept, outside):
            line = refused(stranger, spec, address, variables)
            assert "1 of 2 nodes" in line
            assert f"does not see {stranger.kept} of this machine" in line
            assert "mount one storage at one path of every node" in line
            assert "no runs yet" in stranger.run("tidegate", "runs").stdout
            os.replace(stranger.kept / "data/digits.parquet", outside / "digits.parquet")
            stranger.write_spec(lambda document: document["data"]["source"].update(path=f"{outside}/digits.parquet"))
            see(stranger, stranger.kept)
            until(lambda: "not see the source" in refused(stranger, spec, address, variables))
            assert f"not see the source {outside}/digits.parquet" in refused(stranger, spec, address, variables)
