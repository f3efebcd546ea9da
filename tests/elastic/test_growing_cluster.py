"""A cluster whose autoscaler starts nodes, as processes of this machine: what fits nowhere is asked of it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import yaml
from ray import serve

from histories import totals_of
from live_runs import DIGITS, InThread, ignore, on_disk, spec_of, wait_until
from local_ray import own_surroundings, quiet
from ports import free_port
from tide import load, replicas, slow_application
from tidegate import settings
from tidegate.cluster import NAMESPACE
from tidegate.data.prepare import prepare
from tidegate.scheduling import arbiter

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HEAD_CPUS, NODES = 2, 2
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
HEAD_TYPE = "ray.head.default"
"""What Ray's provider of such nodes calls the head."""
NO_COMMANDS = [
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
]


@pytest.fixture(scope="module")
def growing() -> Iterator[None]:
    """A head with two CPUs, and an autoscaler that may start two nodes of one CPU."""
    with own_surroundings() as folder, autoscaled(folder) as address:
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            quiet()
            serve.start(proxy_location="Disabled")
            rules("borrow")
            arbiter.ensure()
            yield
        finally:
            serve.shutdown()
            ray.shutdown()


@contextmanager
def autoscaled(folder: Path) -> Iterator[str]:
    """Such a cluster; its address."""
    address = f"127.0.0.1:{free_port()}"
    config = folder / "autoscaler.yaml"
    config.write_text(yaml.safe_dump(autoscaler(address)))
    surroundings = os.environ | {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    }
    host, port = address.split(":")
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--node-ip-address={host}"]
    command += [f"--port={port}", f"--num-cpus={HEAD_CPUS}", "--num-gpus=0", "--include-dashboard=false"]
    command += [f"--temp-dir={folder / 'r'}", f"--autoscaling-config={config}", "--block"]
    with (folder / "start.log").open("wb") as log:
        process = subprocess.Popen(command, env=surroundings, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: b"Ray runtime started" in (folder / "start.log").read_bytes())
        yield address
    finally:
        # Its nodes are of its process group.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def autoscaler(address: str) -> dict[str, object]:
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": address,
        "head_node_id": HEAD_ID,
        "launch_multiple": True,
    }
    types = {
        HEAD_TYPE: {"resources": {"CPU": HEAD_CPUS}, "node_config": {}, "max_workers": 0},
        "small": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": NODES},
    }
    return {
        "cluster_name": "growing",
        "max_workers": NODES,
        "provider": provider,
        "available_node_types": types,
        "head_node_type": HEAD_TYPE,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.2,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "docker": {},
    } | {name: [] for name in NO_COMMANDS}


def rules(when_full: str) -> None:
    (settings.home() / arbiter.RULES).write_text(f"cool_down_s: 2\nwhen_full: {when_full}\n")
    wait_until(lambda: arbiter.report().rules["when_full"] == when_full)


def cpus() -> float:
    return ray.cluster_resources().get("CPU", 0.0)


def test_a_run_that_fits_nowhere_gets_nodes_and_they_go_when_it_has_ended(growing: None) -> None:
    spec = on_disk(spec_of(DIGITS, (3, 3), epochs=5))
    prepared = prepare(spec, ignore)
    wait_until(lambda: cpus() == HEAD_CPUS)
    with InThread(spec, prepared, "wide") as run:
        run.final()
    assert cpus() > HEAD_CPUS
    wait_until(lambda: cpus() == HEAD_CPUS)


def test_serving_waits_for_a_node_before_it_takes_from_training_where_the_rule_says_so(growing: None) -> None:
    rules("grow")
    spec = on_disk(spec_of(DIGITS, (1, 1), epochs=100_000))
    prepared = prepare(spec, ignore)
    with slow_application(most=2), InThread(spec, prepared, "undisturbed") as run:
        run.until_size(1)
        with load(clients=4):
            run.until(lambda: replicas() == 2)
        news = run.until_size(1)
    assert (news.totals.groups, news.totals.pauses) == (1, 0)


def test_serving_takes_from_training_first_and_the_run_goes_on_where_a_node_comes(growing: None) -> None:
    rules("borrow")
    spec = on_disk(spec_of(DIGITS, (1, 1), epochs=100_000))
    prepared = prepare(spec, ignore)
    with slow_application(most=2), InThread(spec, prepared, "borrowed") as run:
        run.until_size(1)
        with load(clients=4):
            run.until_phase("waiting")
            run.until(lambda: replicas() == 2)
            run.until_size(1)
            assert replicas() == 2
    assert (totals_of("borrowed").steps_twice, totals_of("borrowed").pauses) == (0, 1)
