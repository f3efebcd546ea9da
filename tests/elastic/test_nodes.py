"""Nodes that are drained, that vanish and that come, on a cluster of two made for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from audit_ledger import audit
from histories import losses_account_for, totals_of
from live_runs import DIGITS, InThread, digest, fit, ignore, on_disk, spec_of, steps_done
from local_ray import own_surroundings, quiet
from tidegate.cluster import NAMESPACE
from tidegate.data.prepare import prepare
from tidegate.training import control

# Ray warns about its own settings when it copies them.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
EPOCHS = 1500
DRAIN_MS = 600_000
"""How long a drained node is left alone."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with two CPUs, which this process has joined."""
    with own_surroundings() as folder:
        head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": str(folder / "r")}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            quiet()
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def held(cpus: int) -> Any:
    """An actor that holds so many CPUs."""
    holder = ray.remote(num_cpus=cpus)(type("Holder", (), {"there": lambda self: True})).remote()
    ray.get(holder.there.remote())
    return holder


def test_a_run_that_lost_its_node_holds_nothing_while_it_waits(cluster: Cluster) -> None:
    """A worker on each node; the one that is left cannot go on alone, and others may have its CPU."""
    spec = on_disk(spec_of(DIGITS, 2, epochs=100_000, checkpoint={"every_s": 0.5}))
    prepared = prepare(spec, ignore)
    holder = held(1)
    second = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
    with InThread(spec, prepared, "homeless") as run:
        run.until_size(2)
        cluster.remove_node(second, allow_graceful=False)
        run.until_phase("waiting")
        run.until(lambda: ray.available_resources().get("CPU") == 1)
        ray.kill(holder)
        run.until_size(2)


def drain(node: Any) -> None:
    """As a cloud's notice that a machine will be taken."""
    client = ray._private.worker.global_worker.gcs_client
    accepted, reason = client.drain_node(node.node_id, 2, "the test", int(time.time() * 1000) + DRAIN_MS)
    assert accepted, reason


def test_a_run_leaves_a_drained_node_survives_a_lost_one_and_grows_onto_a_new_one(
    cluster: Cluster, ledger: Path
) -> None:
    second = cluster.add_node(num_cpus=2, node_ip_address="127.0.0.2")
    spec = on_disk(spec_of(DIGITS, (1, 4), epochs=EPOCHS, checkpoint={"every_s": 0.5}))
    prepared = prepare(spec, ignore)
    with InThread(spec, prepared, "moving") as run:
        run.until_size(4)
        drain(second)
        run.until_size(2)
        run.until(lambda: "changing to 2 workers (a node is being drained)" in run.lines)
        cluster.remove_node(second)
        run.until_step(steps_done("moving") + 50)
        totals = run.until_size(2).totals
        assert (totals.resizes, totals.restarts, totals.steps_twice) == (1, 0, 0)
        third = cluster.add_node(num_cpus=2, node_ip_address="127.0.0.3")
        run.until(lambda: ray.cluster_resources().get("CPU") == 4)
        control.resize("moving", 4, why="the test")
        run.until_size(4)
        run.until_step(steps_done("moving") + 50)
        cluster.remove_node(third, allow_graceful=False)
        run.until_size(2)
        final = run.final()
    totals = totals_of("moving")
    assert (totals.resizes, totals.restarts) == (2, 1)
    found = audit(ledger, prepared, spec)
    assert losses_account_for(found.steps_twice - totals.steps_twice, losses=1)
    alone = on_disk(spec_of(DIGITS, 1, epochs=EPOCHS))
    assert digest(final) == digest(fit(alone, prepared, "alone"))
