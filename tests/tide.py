"""Somebody's own Serve application, traffic for it, and what of the sharing can be seen from outside."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from live_runs import wait_until
from tidegate import ray_internals

APPLICATION, DEPLOYMENT = "slow", "Slow"
ARBITER = b"ray::Arbiter"


@contextmanager
def slow_application(most: int = 3) -> Iterator[None]:
    """An application of one to `most` replicas of a CPU each, that Tidegate did not deploy."""

    class Slow:
        def __call__(self, seconds: float) -> int:
            time.sleep(seconds)
            return os.getpid()

    scaling = {"min_replicas": 1, "max_replicas": most, "target_ongoing_requests": 1}
    soon = {"upscale_delay_s": 0, "downscale_delay_s": 1, "look_back_period_s": 2, "metrics_interval_s": 1}
    with warnings.catch_warnings():
        # Ray calls `metrics_interval_s` deprecated; what replaces it is of the whole cluster.
        warnings.simplefilter("ignore", DeprecationWarning)
        deployment = serve.deployment(Slow, ray_actor_options={"num_cpus": 1}, autoscaling_config=scaling | soon)
        serve.run(deployment.bind(), name=APPLICATION, route_prefix=f"/{APPLICATION}")
    try:
        yield
    finally:
        serve.delete(APPLICATION)
        wait_until(lambda: not replicas())


def replicas() -> int:
    """Running replicas of the application."""
    application = serve.status().applications.get(APPLICATION)
    states = application.deployments[DEPLOYMENT].replica_states if application and application.deployments else {}
    return int(states.get("RUNNING", 0))


def wanted_replicas() -> int:
    """How many its autoscaler wants."""
    application = ray_internals.serve_details()["applications"].get(APPLICATION)
    return int(application["deployments"][DEPLOYMENT]["target_num_replicas"]) if application else 0


def own_handle() -> Any:
    """A handle that tells Serve of its requests by itself: now and then one falls silent for good (Ray 2.60)."""
    return DeploymentHandle(DEPLOYMENT, APPLICATION)


@contextmanager
def load(clients: int) -> Iterator[list[int]]:
    """So many clients that ask one after the other; the process ids that answered. A request that fails raises."""
    answered: list[int] = []
    going = [True]

    def ask() -> None:
        handle = own_handle()
        while going[0]:
            answered.append(handle.remote(0.2).result(timeout_s=60))

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask) for _ in range(clients)]
        try:
            yield answered
        finally:
            going[0] = False
    for each in asked:
        each.result()


def process_of(title: bytes) -> int:
    """The process of our own Ray whose title begins so."""
    home = f"HOME={os.environ['HOME']}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            if (process / "cmdline").read_bytes().startswith(title) and home in environment:
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"no process {title.decode()}")
