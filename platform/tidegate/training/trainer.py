"""A run on the cluster: Ray Train's controller and workers around the loop, and what is watched meanwhile."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from tidegate import settings
from tidegate.data.feed import PlannedShards, position, steps_per_unit
from tidegate.data.prepared import Prepared
from tidegate.errors import ClusterError, DataError, TidegateError, TrainingError
from tidegate.spec.run import Spec
from tidegate.spec.train import Workers
from tidegate.training import checkpoint as checkpoints
from tidegate.training.checkpoint import Checkpoint
from tidegate.training.job import Job, plan_of, total_steps
from tidegate.training.loop import row_bytes, train_worker
from tidegate.training.progress import Monitor, News

logger = logging.getLogger(__name__)

NEVER_S = 1e9
"""Ray's own resizing would restart a run without a checkpoint; it is put off for good."""
FEED_CPUS = 1
"""Kept free of workers for the feed's map step, which could not run otherwise."""
MAX_FAILURES = 3
NEWS_EVERY_S = 0.5
CHECKPOINT_EVERY_S = 60.0

OnNews = Callable[[News], None]


def fit(
    spec: Spec,
    prepared: Prepared,
    run: str,
    *,
    on_news: OnNews,
    say: Callable[[str], None],
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> Checkpoint:
    """Train to the end; the final checkpoint. Raises TrainingError, or ClusterError when the workers can never fit."""
    plan = plan_of(spec, prepared)
    if spec.train.global_batch != "all" and plan.global_batch > plan.num_rows:
        raise DataError(
            f"train.global_batch is {plan.global_batch}, but the training split has {plan.num_rows} rows",
            remedy="lower it, or write all",
        )
    workers = _workers(spec.train.workers, say)
    monitor = ray.remote(num_cpus=0)(Monitor).remote()
    folder = settings.home() / "runs" / run
    job = Job(spec, prepared.folder, folder, monitor, checkpoint_every_s, settings.LEDGER.text())
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            resources_per_worker={"CPU": spec.train.workers.cpu},
            elastic_resize_monitor_interval_s=NEVER_S,
        ),
        torch_config=TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name=run,
            storage_path=str(settings.home() / "runs"),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        ),
        datasets={"train": _Position(job.run_folder)},
        dataset_config=PlannedShards(
            prepared.folder, total_steps(spec, plan), plan, steps_per_unit(plan, row_bytes(prepared))
        ),
    )
    with _Watch(job.monitor, on_news):
        _fit(trainer)
        failure = ray.get(monitor.failure.remote())
    if failure is not None:
        raise failure
    final = checkpoints.latest(job.run_folder)
    if final is None or not final.state["finished"]:
        raise TrainingError(f"run {run} ended without a final checkpoint", remedy=f"see {job.run_folder}")
    return final


class _Position:
    """Called by Ray Train whenever it starts workers: the step they go on from."""

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder

    def __call__(self) -> ray.data.Dataset:
        checkpoint = checkpoints.latest(self.run_folder)
        return position(checkpoint.step if checkpoint else 0)


def _workers(wanted: Workers, say: Callable[[str], None]) -> tuple[int, int]:
    """The bounds, with the maximum lowered to what is free now: Ray Train does not see what Serve and others hold.

    Waits, and says so, while not even the minimum fits. Raises ClusterError when it never can.
    """
    told = 0.0
    while True:
        room = _room(ray.available_resources(), wanted.cpu)
        if room >= wanted.min:
            return wanted.min, min(wanted.max, room)
        ever = _room(ray.cluster_resources(), wanted.cpu)
        if ever < wanted.min:
            raise ClusterError(
                f"the run needs {wanted.min} workers of {wanted.cpu} CPUs and {FEED_CPUS} CPU for its feed; "
                f"the cluster has {ray.cluster_resources().get('CPU', 0):g} CPUs in all",
                remedy="lower train.workers, or add nodes",
            )
        if time.monotonic() - told > 10:
            told = time.monotonic()
            free = ray.available_resources().get("CPU", 0)
            say(f"waiting for {wanted.min * wanted.cpu + FEED_CPUS} CPUs: {free:g} are free")
        time.sleep(0.5)


def _room(resources: dict[str, float], cpu: int) -> int:
    return max(0, math.floor((resources.get("CPU", 0) - FEED_CPUS) / cpu))


def _fit(trainer: TorchTrainer) -> None:
    interrupt = signal.getsignal(signal.SIGINT) or signal.default_int_handler
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    except SystemExit:
        # How Ray Train ends an interrupted run, once its workers are gone.
        raise KeyboardInterrupt from None
    finally:
        # Its handler would stay, and end this process with status 0 at the next interrupt.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)


def _cause(error: BaseException) -> TidegateError:
    """The first error of a worker, as the person should see it."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in [*failures, getattr(error, "controller_failure", None), error.__cause__, error]:
        current: Any = failure
        while current is not None:
            cause = getattr(current, "cause", None) or current.__cause__
            if isinstance(current, TidegateError):
                return current
            current = cause
    reason = str(failures[0] if failures else error).strip().splitlines()
    return TrainingError(f"training failed: {reason[-1] if reason else type(error).__name__}")


class _Watch:
    """Fetches news while training runs, in a thread of its own, and once more at the end."""

    def __init__(self, monitor: Any, on_news: OnNews) -> None:
        self.monitor, self.on_news = monitor, on_news
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="tidegate-news")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=10)
        ray.kill(self.monitor)

    def _follow(self) -> None:
        while not self._over.wait(NEWS_EVERY_S):
            self._fetch()
        self._fetch()

    def _fetch(self) -> None:
        try:
            self.on_news(ray.get(self.monitor.news.remote(), timeout=5))
        except (ray.exceptions.RayError, TidegateError) as error:
            # News is a courtesy: training goes on without it.
            logger.warning("some progress of the run was not told: %s", error)
