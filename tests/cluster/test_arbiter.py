"""Training and serving on one live cluster: devices lent and taken back, and nothing lost by it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from histories import totals_of
from live_runs import DIGITS, InThread, digest, fit, ignore, on_disk, paced, spec_of, wait_until
from local_ray import own_surroundings
from ports import free_port
from tide import ARBITER, load, process_of, replicas, slow_application
from tidegate import cluster, connection, settings
from tidegate.data.prepare import prepare
from tidegate.data.prepared import Prepared
from tidegate.scheduling import arbiter
from tidegate.spec.run import Spec
from tidegate.training import control
from tidegate.training.checkpoint import Checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
CPUS = 5
EPOCHS = 100
LONG = 100_000


@pytest.fixture(scope="module")
def ray_shared() -> Iterator[None]:
    """A cluster of five CPUs with an arbiter whose cool-down is short."""
    with own_surroundings():
        try:
            cluster.up(cpus=CPUS, gpus=0, serve_port=free_port(), auth="disabled")
            connection.connect()
            (settings.home() / arbiter.RULES).write_text("cool_down_s: 2\n")
            arbiter.ensure()
            yield
        finally:
            cluster.down()


def digits(workers: tuple[int, int], **train: Any) -> Spec:
    options: dict[str, Any] = {"epochs": EPOCHS, "shards": 5, "checkpoint": {"every_s": 5.0}} | train
    return on_disk(spec_of(DIGITS, workers, **options))


@pytest.fixture(scope="module")
def prepared(ray_shared: None) -> Prepared:
    return prepare(digits((1, 1)), ignore)


@pytest.fixture(scope="module")
def alone(prepared: Prepared) -> Checkpoint:
    return fit(digits((1, 1)), prepared, "alone")


@pytest.fixture
def slow(ray_shared: None) -> Iterator[None]:
    with slow_application():
        yield


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """While it is there, runs that heed it are slow."""
    file = tmp_path / "gate"
    file.touch()
    return file


def test_a_spike_takes_devices_from_a_run_and_gives_them_back(
    alone: Checkpoint, prepared: Prepared, slow: None, gate: Path
) -> None:
    with InThread(digits((1, 4)), prepared, "tide", loop=paced(gate)) as run:
        run.until_size(4)
        with load(clients=6) as answered:
            run.until(lambda: replicas() == 3)
            run.until_size(2)
            run.until(lambda: len(set(answered)) == 3)
        run.until_size(4)
        gate.unlink()
        final = run.final()
    assert digest(final) == digest(alone)
    assert (totals_of("tide").steps_twice, totals_of("tide").restarts) == (0, 0)
    told = [event.what for event in arbiter.report().events if event.who == "tide"]
    assert any(what.startswith("gives") and "slow/Slow" in what for what in told)
    assert any(what.startswith("takes") for what in told)


def test_a_run_keeps_clear_of_a_plain_actor(prepared: Prepared) -> None:
    holder = ray.remote(num_cpus=2)(type("Holder", (), {"there": lambda self: True})).remote()
    ray.get(holder.there.remote())
    with InThread(digits((1, 5), epochs=LONG), prepared, "clear") as run:
        run.until_size(CPUS - 2)
        ray.kill(holder)
        run.until_size(CPUS)


def test_a_run_of_higher_priority_takes_all_and_the_other_goes_on_afterwards(prepared: Prepared) -> None:
    low, high = digits((3, 3), epochs=LONG), digits((4, 4), epochs=10, priority=1)
    with InThread(low, prepared, "low") as first:
        first.until_size(3)
        with InThread(high, prepared, "high") as second:
            second.until_size(4)
            first.until_phase("waiting")
            news = control.status("low")
            assert news is not None
            assert news.note.startswith("1. in the queue: ")
            second.final()
        first.until_size(3)
    assert (totals_of("low").steps_twice, totals_of("low").pauses) == (0, 1)


def test_a_killed_arbiter_is_started_again_and_runs_keep_what_they_have(prepared: Prepared) -> None:
    with InThread(digits((1, 3), epochs=LONG), prepared, "kept") as run:
        group = run.until_size(3).totals.groups
        os.kill(process_of(ARBITER), signal.SIGKILL)
        run.until(lambda: bool(arbiter.report().holders))
        news = control.status("kept")
        assert news is not None
        assert (news.totals.groups, news.progress.workers) == (group, 3)


def test_rules_hold_as_soon_as_they_are_written_and_broken_ones_do_not(ray_shared: None) -> None:
    file = settings.home() / arbiter.RULES
    before = file.read_text()
    try:
        file.write_text("cool_down_s: 3\npriorities: {digits: 4}\n")
        wait_until(lambda: arbiter.report().rules.get("priorities") == {"digits": 4})
        file.write_text("cool_down_s: soon\n")
        wait_until(lambda: "cool_down_s" in arbiter.report().trouble)
        assert arbiter.report().rules["cool_down_s"] == 3
    finally:
        file.write_text(before)
    wait_until(lambda: not arbiter.report().trouble)
