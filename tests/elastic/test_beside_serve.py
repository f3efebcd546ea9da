"""The same elastic training beside the same Serve application on one small cluster: raw Ray waits, Tidegate trains."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from live_runs import DIGITS, InThread, ignore, on_disk, spec_of
from local_ray import own_surroundings
from ports import free_port
from tide import replicas, slow_application
from tidegate import cluster, connection
from tidegate.data.prepare import prepare

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
BOUND_S = 90.0
"""For how long raw Ray is waited for."""
RAW = """
import sys
import ray, ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
ray.init(address=sys.argv[1], log_to_driver=False)
def loop():
    open(sys.argv[2], "a").close()
    ray.train.report({"done": 1})
scaling = ScalingConfig(num_workers=(1, 4))
TorchTrainer(loop, scaling_config=scaling, run_config=RunConfig(storage_path=sys.argv[3])).fit()
"""


@pytest.fixture(scope="module")
def four_cpus() -> Iterator[None]:
    with own_surroundings():
        try:
            cluster.up(cpus=4, gpus=0, serve_port=free_port(), auth="disabled")
            connection.connect()
            yield
        finally:
            cluster.down()


def test_raw_ray_waits_where_tidegate_trains(four_cpus: None, tmp_path: Path) -> None:
    """One to four workers, four CPUs, one of them a replica's: raw Ray asks for four and never starts with three."""
    began = tmp_path / "began"
    address = ray.get_runtime_context().gcs_address
    with slow_application():
        assert replicas() == 1
        raw = subprocess.Popen(
            [sys.executable, "-c", RAW, address, str(began), str(tmp_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until = time.monotonic() + BOUND_S
            while time.monotonic() < until:
                assert raw.poll() is None, "raw Ray's trainer ended"
                assert not began.exists(), "raw Ray trains: the reason for this test has gone"
                time.sleep(0.5)
        finally:
            raw.kill()
            raw.wait()
        spec = on_disk(spec_of(DIGITS, (1, 4), epochs=100_000))
        prepared = prepare(spec, ignore)
        asked = time.monotonic()
        with InThread(spec, prepared, "beside") as run:
            run.until_size(3)
            seconds = time.monotonic() - asked
        print(f"raw Ray: not in {BOUND_S:g} s; Tidegate: first step with 3 workers after {seconds:.1f} s")
