"""Sharing on a cluster of three nodes while something fails: nothing hangs, nothing is lost or held for nobody."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from audit_ledger import audit
from histories import losses_account_for, totals_of
from live_runs import DIGITS, Driver, InThread, digest, fit, ignore, on_disk, paced, spec_of, wait_until, workers_of
from local_ray import own_surroundings, quiet
from tide import ARBITER, load, process_of, replicas, slow_application
from tidegate import ray_internals, settings
from tidegate.cluster import NAMESPACE
from tidegate.data.prepare import prepare
from tidegate.data.prepared import Prepared
from tidegate.scheduling import arbiter
from tidegate.spec.run import Spec
from tidegate.training import control
from tidegate.training.checkpoint import Checkpoint

# Ray warns about its own settings when it copies them.
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    # Sockets of Ray that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
EPOCHS = 100


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head with two CPUs and two nodes with one each, with an arbiter whose cool-down is short."""
    with own_surroundings() as folder:
        head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": str(folder / "r")}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            quiet()
            for number in (2, 3):
                cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{number}")
            (settings.home() / arbiter.RULES).write_text("cool_down_s: 2\n")
            serve.start(proxy_location="Disabled")
            arbiter.ensure()
            yield cluster
        finally:
            serve.shutdown()
            ray.shutdown()
            cluster.shutdown()


def digits(workers: tuple[int, int], **train: Any) -> Spec:
    options: dict[str, Any] = {"epochs": EPOCHS, "shards": 4, "checkpoint": {"every_s": 0.5}} | train
    return on_disk(spec_of(DIGITS, workers, **options))


@pytest.fixture(scope="module")
def prepared(nodes: Cluster) -> Prepared:
    return prepare(digits((1, 1)), ignore)


@pytest.fixture(scope="module")
def alone(prepared: Prepared) -> Checkpoint:
    return fit(digits((1, 1)), prepared, "alone")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """While it is there, runs that heed it are slow."""
    file = tmp_path / "gate"
    file.touch()
    return file


@contextmanager
def sharing(prepared: Prepared, name: str, gate: Path, **train: Any) -> Iterator[InThread]:
    """A run on all that an application of up to three replicas leaves over."""
    with slow_application(), InThread(digits((1, 3), **train), prepared, name, loop=paced(gate)) as run:
        run.until_size(3)
        with told_when_it_fails():
            yield run


@contextmanager
def told_when_it_fails() -> Iterator[None]:
    """How things stood where a test was waiting in vain."""
    try:
        yield
    except AssertionError:
        print(arbiter.report().explain())
        for run, claim in control.claims(5).items():
            print(run, claim, control.status(run), sep="\n")
        print(ray_internals.serve_details())
        raise


def through(run: InThread, fault: Callable[[], None]) -> None:
    """A tide in the middle of which the fault strikes: the application gets its replicas nevertheless."""
    with load(clients=6) as answered:
        fault()
        run.until(lambda: replicas() == 3)
        before = len(answered)
        run.until(lambda: len(answered) > before + 20)


def ended_well(run: InThread, gate: Path, alone: Checkpoint, ledger: Path, prepared: Prepared, losses: int) -> None:
    """The run ends with the model of an undisturbed one, and each of its rows counts once an epoch."""
    gate.unlink()
    assert digest(run.final()) == digest(alone)
    totals, found = totals_of(run.run), audit(ledger, prepared, digits((1, 3)))
    assert losses_account_for(found.steps_twice - totals.steps_twice, losses)
    assert losses or found.steps_twice == 0
    wait_until(lambda: ray.available_resources().get("CPU", 0) >= ray.cluster_resources()["CPU"] - replicas())


def test_the_arbiter_is_killed_when_a_spike_comes(
    prepared: Prepared, alone: Checkpoint, gate: Path, ledger: Path
) -> None:
    with sharing(prepared, "arbiter-killed", gate) as run:
        through(run, lambda: os.kill(process_of(ARBITER), signal.SIGKILL))
        run.until_size(3)
        ended_well(run, gate, alone, ledger, prepared, losses=0)


def test_the_controller_of_serve_is_killed_when_a_spike_comes(
    prepared: Prepared, alone: Checkpoint, gate: Path, ledger: Path
) -> None:
    with sharing(prepared, "serve-killed", gate) as run:
        through(run, lambda: os.kill(process_of(b"ray::ServeController"), signal.SIGKILL))
        run.until_size(3)
        ended_well(run, gate, alone, ledger, prepared, losses=0)


def test_ray_s_coordinator_is_killed_when_a_spike_comes(
    prepared: Prepared, alone: Checkpoint, gate: Path, ledger: Path
) -> None:
    def fault() -> None:
        ray.kill(ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator"))

    with sharing(prepared, "uncoordinated", gate) as run:
        through(run, fault)
        run.until_size(3)
        ended_well(run, gate, alone, ledger, prepared, losses=0)


def test_the_lender_s_worker_is_killed_while_it_gives(
    prepared: Prepared, alone: Checkpoint, gate: Path, ledger: Path
) -> None:
    with sharing(prepared, "worker-killed", gate) as run:

        def fault() -> None:
            run.until_phase("yielding")
            if workers := workers_of(run.run, ledger):
                os.kill(workers[-1], signal.SIGKILL)

        through(run, fault)
        run.until_size(3)
        ended_well(run, gate, alone, ledger, prepared, losses=1)


def test_the_lender_s_driver_is_killed_and_the_application_has_what_it_held(
    prepared: Prepared, tmp_path: Path, ledger: Path
) -> None:
    with slow_application(), Driver(digits((1, 3), epochs=100_000), "orphan") as run:
        run.until_size(3)
        with load(clients=6):
            run.kill()
            wait_until(lambda: replicas() == 3)
    wait_until(lambda: "orphan" not in control.going_on())


def test_a_run_that_does_not_yield_is_not_waited_for(prepared: Prepared, gate: Path, ledger: Path) -> None:
    """Two runs hold all but one CPU. The one that is asked first is frozen: the other one gives instead."""
    spec = digits((1, 2), epochs=100_000)
    with (
        slow_application(most=2),
        InThread(digits((1, 1), epochs=100_000), prepared, "other", loop=paced(gate)) as other,
        InThread(spec, prepared, "frozen", loop=paced(gate)) as frozen,
    ):
        frozen.until_size(2)
        other.until_size(1)
        stopped = workers_of("frozen", ledger)
        for worker in stopped:
            os.kill(worker, signal.SIGSTOP)
        try:
            with load(clients=4), told_when_it_fails():
                wait_until(lambda: replicas() == 2)
        finally:
            for worker in stopped:
                os.kill(worker, signal.SIGCONT)
        other.until_size(1)
        frozen.until_size(2)


def test_a_node_is_lost_while_a_run_gives(
    nodes: Cluster, prepared: Prepared, alone: Checkpoint, gate: Path, ledger: Path
) -> None:
    with slow_application():
        # Its first replica is elsewhere: what the node holds is the run's.
        extra = nodes.add_node(num_cpus=1, node_ip_address="127.0.0.4")
        wait_until(lambda: ray.cluster_resources()["CPU"] == 5)
        with InThread(digits((1, 4)), prepared, "node-lost", loop=paced(gate, 0.1)) as run:
            run.until_size(4)
            with load(clients=6), told_when_it_fails():
                run.until_phase("yielding")
                nodes.remove_node(extra, allow_graceful=False)
                run.until(lambda: replicas() == 3)
            run.until_size(3)
            ended_well(run, gate, alone, ledger, prepared, losses=1)
