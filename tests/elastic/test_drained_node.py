"""An endpoint on nodes of which one is drained, as before a machine is taken away: no request is lost.

The nodes are processes of this machine, each with an address of its own. Their HAProxies share one port.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import ray

import waiting
from local_ray import quiet
from numbers_model import BODY, register
from ports import free_port
from steady_load import steady_load
from tidegate import cluster, connection, ray_internals
from tidegate.cluster import LocalCluster
from tidegate.serving import deploy
from tidegate.spec.endpoint import Endpoint

pytestmark = pytest.mark.cluster
wait_for = partial(waiting.wait_for, seconds=120.0)
DRAIN_MS = 600_000
# `ray start` for another node on loopback, which Ray takes for a cluster of one machine.
START = """
import types
from ray.scripts import scripts
scripts.ray_constants = types.SimpleNamespace(**{**vars(scripts.ray_constants), "ENABLE_RAY_CLUSTER": True})
scripts.main()
"""
# What is one's own on each node: where HAProxy keeps its files, and where it tells of itself.
FILES = ("CONFIG_FILE_LOC", "SOCKET_PATH", "METRICS_SOCKET_PATH", "SERVER_STATE_BASE", "SERVER_STATE_FILE")


@contextmanager
def node(local: LocalCluster, address: str, folder: Path) -> Iterator[None]:
    """Another node of the cluster, with one CPU."""
    lines = Path(f"/proc/{local.pid}/environ").read_text().split("\0")
    environment = dict(line.partition("=")[::2] for line in lines if line)
    folder.mkdir()
    for name in FILES:
        environment[f"RAY_SERVE_HAPROXY_{name}"] = str(folder / name.lower()[:8])
    environment["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"] = str(folder)
    for name in ("METRICS", "STATS"):
        environment[f"RAY_SERVE_HAPROXY_{name}_PORT"] = str(free_port())
    command = [sys.executable, "-c", START, "start", f"--address={local.address}", "--block"]
    command += [f"--node-ip-address={address}", "--num-cpus=1", "--num-gpus=0", "--disable-usage-stats"]
    command += [f"--{name}=0" for name in ("min-worker-port", "max-worker-port", "metrics-export-port")]
    command += [f"--{name}=0" for name in ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="module", name="url")
def _url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two replicas, and three nodes of which each has room for one."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as nodes:
        patch.setenv("HOME", str(home))
        patch.setenv("TIDEGATE_HOME", str(home / "tidegate"))
        patch.setenv("TIDEGATE_SERVE_PORT", str(port := free_port()))
        # Replicas must be reached by the address of their node.
        patch.setenv("TIDEGATE_SERVE_HOST", "0.0.0.0")
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        try:
            local = cluster.up(cpus=1, gpus=0, serve_port=port, auth="disabled")
            connection.connect()
            quiet()
            for number in (2, 3):
                nodes.enter_context(node(local, f"127.0.0.{number}", Path(local.temp_dir) / f"n{number}"))
                # One after the other: nodes of one machine that start at once may choose the same socket.
                wait_for(lambda number=number: len(alive()) == number)
            register(home / "models" / "1", 1)
            bounds = {"min": 2, "max": 2, "cpu": 1}
            spec = {"name": "numbers", "model": "numbers@1", "replicas": bounds, "access": {"public": True}}
            yield deploy.deploy(Endpoint.model_validate(spec)).url
        finally:
            nodes.close()
            ray.shutdown()
            cluster.down()


def alive() -> list[str]:
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def places() -> list[str]:
    """The nodes of the replicas that run."""
    application = ray_internals.serve_details()["applications"]["tidegate.numbers"]
    replicas = application["deployments"]["replica"]["replicas"]
    return [one["node_id"] for one in replicas if one["state"] == "RUNNING"]


def drain(node_id: str) -> None:
    """As a cloud's notice that a machine will be taken."""
    client = ray._private.worker.global_worker.gcs_client
    accepted, reason = client.drain_node(node_id, 2, "the test", int(time.time() * 1000) + DRAIN_MS)
    assert accepted, reason


def test_no_request_is_lost_when_a_node_is_drained(url: str) -> None:
    (head,) = (node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    leaving = next(place for place in places() if place != head)
    with steady_load(f"{url}/infer", BODY) as account:
        drain(leaving)
        wait_for(lambda: len(places()) == 2 and leaving not in places())
        wanted = account.statuses[200] + 500
        wait_for(lambda: account.statuses[200] >= wanted)
    print(f"\na node drained: {account}")
    assert account.failed == 0
