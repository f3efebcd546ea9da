"""A real local cluster: up, up again, joining it, Ray's job command, Serve on loopback, down to the last process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ports import free_port
from tidegate import cluster, connection
from tidegate.errors import ClusterError

pytestmark = pytest.mark.cluster

RAY = str(Path(sys.executable).parent / "ray")

# Deploys through Serve, then reports what it sees and every listening address of the cluster's processes.
DRIVER = """
import json, urllib.request
from tidegate import cluster, connection
connection.connect()
connection.connect()
from ray import serve
from ray.serve.config import HTTPOptions
connection.quiet()
url = cluster.current().serve_url

@serve.deployment
class Answer:
    def __call__(self, request):
        return "served"

idle = connection.status()
serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(url.rpartition(":")[2])))
serve.run(Answer.bind(), name="answer", route_prefix="/answer")
status = connection.status()
print(json.dumps({
    "body": urllib.request.urlopen(url + "/answer", timeout=10).read().decode(),
    "nodes": status.nodes, "cpus": status.total["CPU"], "address": status.address,
    "serving": [idle.serving, status.serving],
}))
"""

# Joins from inside a job. Its descendants leave its session and drop its environment.
ESCAPING_JOB = """
import pathlib, subprocess, sys, time
from tidegate import cluster, connection
connection.connect()
import ray

@ray.remote
def work():
    return subprocess.Popen(["sleep", "300"], env={}, start_new_session=True).pid

own = subprocess.Popen(["sleep", "300"], env={}, start_new_session=True).pid
new = pathlib.Path(sys.argv[1] + ".new")
new.write_text(f"{own} {ray.get(work.remote())}")
new.rename(sys.argv[1])
time.sleep(300)
"""


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TIDEGATE_HOME", str(home / "tidegate"))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        yield home
        cluster.down()


@pytest.fixture(scope="module", name="up")
def _up(home: Path) -> cluster.LocalCluster:
    return cluster.up(cpus=4, gpus=0, serve_port=free_port(), auth="token")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def python(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=False
    )


def submit(record: cluster.LocalCluster, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **cluster.environment(record)}
    command = [RAY, "job", "submit", *words]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)


def processes_under(leader: int) -> set[int]:
    """All processes in the leader's session or descended from it: another way to count than the one under test."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,sid="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(int(word) for word in line.split()) for line in listing.splitlines()]
    found = {pid for pid, _, session in rows if session == leader}
    for _ in rows:
        found |= {pid for pid, parent, _ in rows if parent in found}
    return found


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def listening(pids: set[int]) -> list[tuple[str, str]]:
    """(address, title) of every TCP socket on which one of `pids` listens."""
    owners = {}
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            owners[os.readlink(link)] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listeners = [(row[1].partition(":")[0], f"socket:[{row[9]}]") for row in rows if row[3] == "0A"]
    return [(address, owners[inode]) for address, inode in listeners if inode in owners]


def test_up_again_returns_the_same_cluster(up: cluster.LocalCluster, home: Path) -> None:
    assert cluster.up(auth="disabled") == up
    assert cluster.current() == up
    # Another process sees the same one.
    seen = python("from tidegate import cluster; print(cluster.up().pid, cluster.current().pid)")
    assert seen.stdout.split() == [str(up.pid)] * 2, seen.stderr
    assert (home / "tidegate" / "cluster.json").stat().st_mode & 0o777 == 0o600
    assert Path(up.temp_dir).stat().st_mode & 0o777 == 0o700


def test_a_driver_joins_and_serves_on_loopback_only(up: cluster.LocalCluster) -> None:
    done = python(DRIVER)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer == {
        "body": "served",
        "nodes": 1,
        "cpus": 4.0,
        "address": up.address,
        "serving": [False, True],
    }
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    found = listening(processes_under(up.pid))
    assert any("haproxy" in title for _, title in found)
    # Ray opens a port for calls between deployments in every replica on all interfaces and has no setting for it.
    elsewhere = [(address, title) for address, title in found if address not in loopback]
    assert [title for _, title in elsewhere if not title.startswith("ray::ServeReplica")] == []


def test_a_driver_whose_environment_is_meant_for_another_cluster_joins(up: cluster.LocalCluster) -> None:
    done = python(
        "from tidegate import connection\nconnection.connect()\nprint(connection.status().address)",
        RAY_AUTH_MODE="disabled",
    )
    assert done.stdout.split() == [up.address], done.stderr


def test_a_driver_without_the_token_is_refused_in_one_line(up: cluster.LocalCluster) -> None:
    script = (
        "import ray\nfrom tidegate import connection, errors\ntry:\n    connection.connect()\n"
        "except errors.ClusterError as error:\n    print(error)"
    )
    done = python(script, RAY_AUTH_TOKEN="0" * 64)
    assert done.stdout.count("\n") == 1, done.stderr
    assert "refused this process" in done.stdout
    assert "RAY_AUTH_MODE" in done.stdout


def test_a_job_joins_with_a_token_and_down_leaves_nothing_of_it(up: cluster.LocalCluster, home: Path) -> None:
    job = home / "job.py"
    job.write_text(ESCAPING_JOB)
    pids = home / "pids"
    assert submit(up, "--no-wait", "--", "python", str(job), str(pids)).returncode == 0
    wait_for(pids.exists)
    escaped = {int(word) for word in pids.read_text().split()}
    everything = processes_under(up.pid) | escaped
    assert len(everything) > 15
    assert all(runs(pid) for pid in escaped)

    with subprocess.Popen(["sleep", "300"], start_new_session=True) as stranger:
        assert cluster.down() is True
        assert [pid for pid in everything if runs(pid)] == []
        assert stranger.poll() is None
        stranger.kill()
    assert not Path(up.temp_dir).exists()
    assert cluster.current() is None
    assert cluster.down() is False


def test_without_authentication_and_after_the_leader_was_killed(home: Path) -> None:
    record = cluster.up(cpus=2, gpus=0, serve_port=free_port(), auth="disabled")
    done = submit(record, "--", "python", "-c", "print(1)")
    assert done.returncode == 0, done.stdout + done.stderr
    everything = processes_under(record.pid)

    os.kill(record.pid, signal.SIGKILL)
    wait_for(lambda: not runs(record.pid))
    assert cluster.current() is None
    with pytest.raises(ClusterError, match="no cluster is running"):
        connection.connect()
    cluster.down()
    assert [pid for pid in everything if runs(pid)] == []
    assert not Path(record.temp_dir).exists()
