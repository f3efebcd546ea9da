"""A run on the cluster: Ray Train's controller and workers around the loop, and what is watched meanwhile."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from tidegate import settings
from tidegate.data.feed import PlannedShards, position, steps_per_unit
from tidegate.data.prepared import Prepared
from tidegate.errors import DataError, TidegateError, TrainingError
from tidegate.spec.run import Spec
from tidegate.training import checkpoint as checkpoints
from tidegate.training.checkpoint import Checkpoint
from tidegate.training.job import Job, plan_of, total_steps
from tidegate.training.loop import row_bytes, train_worker
from tidegate.training.progress import Monitor
from tidegate.training.room import workers
from tidegate.training.watch import OnNews, Watch

NEVER_S = 1e9
"""Ray's own resizing would restart a run without a checkpoint; it is put off for good."""
MAX_FAILURES = 3
CHECKPOINT_EVERY_S = 60.0


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
    _refuse_large_batch(spec, prepared)
    size = workers(spec.train.workers, say)
    monitor = ray.remote(num_cpus=0)(Monitor).remote()
    folder = settings.home() / "runs" / run
    job = Job(spec, prepared.folder, folder, monitor, checkpoint_every_s, settings.LEDGER.text())
    with Watch(monitor, on_news):
        _fit(_trainer(job, prepared, size))
        failure = ray.get(monitor.failure.remote())
    if failure is not None:
        raise failure
    final = checkpoints.latest(folder)
    if final is None or not final.state["finished"]:
        raise TrainingError(f"run {run} ended without a final checkpoint", remedy=f"see {folder}")
    return final


def _refuse_large_batch(spec: Spec, prepared: Prepared) -> None:
    batch, rows = spec.train.global_batch, prepared.num_rows("train")
    if batch != "all" and batch > rows:
        raise DataError(
            f"train.global_batch is {batch}, but the training split has {rows} rows", remedy="lower it, or write all"
        )


def _trainer(job: Job, prepared: Prepared, size: tuple[int, int]) -> TorchTrainer:
    plan = plan_of(job.spec, prepared)
    steps = steps_per_unit(plan, row_bytes(prepared))
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=size,
            resources_per_worker={"CPU": job.spec.train.workers.cpu},
            elastic_resize_monitor_interval_s=NEVER_S,
        ),
        torch_config=TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            name=job.name,
            storage_path=str(job.run_folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        ),
        datasets={"train": _Position(job.run_folder)},
        dataset_config=PlannedShards(prepared.folder, total_steps(job.spec, plan), plan, steps),
    )


class _Position:
    """Called by Ray Train whenever it starts workers: the step they go on from."""

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder

    def __call__(self) -> ray.data.Dataset:
        checkpoint = checkpoints.latest(self.run_folder)
        return position(checkpoint.step if checkpoint else 0)


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
