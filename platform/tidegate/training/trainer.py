"""A run on the cluster: Ray Train's controller and workers around the loop, paused, resumed and resized as asked."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from tidegate import artifact, ray_internals, settings
from tidegate.data.feed import PlannedShards, position, steps_per_unit
from tidegate.data.prepared import Prepared
from tidegate.errors import DataError, MissingError, StoppedError, TidegateError, TrainingError
from tidegate.models.code import Code
from tidegate.models.custom import code_of
from tidegate.spec.run import Spec
from tidegate.training import resize, room
from tidegate.training.checkpoint import Checkpoint, Checkpoints
from tidegate.training.claim import Wish
from tidegate.training.control import arbiter_is_there, monitored
from tidegate.training.fit import Fit
from tidegate.training.job import Job, plan_of, total_steps
from tidegate.training.loop import row_bytes, train_worker
from tidegate.training.losses import Losses
from tidegate.training.progress import Totals
from tidegate.training.signals import heeded
from tidegate.training.watch import OnNews, Watch
from tidegate.transforms.augment import RowWork

NEVER_S = 1e9
"""Ray's own resizing would restart a run without a checkpoint; it is put off for good."""
ARBITER_S = 5.0
"""How long a run waits for the arbiter's first word."""
MAX_FAILURES = 3
"""Without a policy of ours nobody but Ray bounds how often workers are lost."""
CONTROLLER = {
    # How often Ray's controller looks at its workers: each look is a part of the time a resize takes.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A drained node is left through our own policy.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

MALLOC = {
    # Every step frees its activations. glibc would give them back to the system and fault them in again, thousands of
    # pages a step, a tenth of the time of a small network. It keeps up to 1 GiB; blocks of over 32 MiB are never kept.
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TOP_PAD_": str(2**26),
}


def fit(
    spec: Spec,
    prepared: Prepared,
    run: str,
    *,
    on_news: OnNews,
    say: Callable[[str], None],
    code: Code | None = None,
    loop: Callable[[Fit], None] | None = None,
    monitor: Any = None,
) -> Checkpoint:
    """Train to the end, from the newest checkpoint of `run` if there is one; the final checkpoint.

    `code` holds the sources of a person's own model; without it they are collected here. `monitor` is the run's, from
    `opened`, where there is more to the run than this. Raises StoppedError when the run was asked to stop
    (KeyboardInterrupt when SIGINT asked), ConflictError while another process trains it, TrainingError, or ClusterError
    when the workers can never fit.
    """
    _refuse_large_batch(spec, prepared)
    folder = settings.home() / "runs" / run
    code = code or code_of(spec.model)
    with opened(spec, run, say) if monitor is None else nullcontext(monitor) as own:
        job = Job(
            spec,
            prepared.folder,
            folder,
            checkpoints_of(spec, folder),
            identity(spec, prepared, code),
            own,
            code,
            loop,
            settings.LEDGER.text(),
        )
        with Watch(own, on_news, folder), heeded(lambda number: _ask_stop(own, number)) as signals:
            try:
                return _Attempts(job, prepared, _is_resizable(), say).carry()
            except StoppedError as error:
                if signals.received is signal.SIGINT:
                    raise KeyboardInterrupt(str(error)) from None
                raise


@contextmanager
def opened(spec: Spec, run: str, say: Callable[[str], None]) -> Iterator[Any]:
    """The monitor of a run that this process drives: the run can be asked something from now on.

    Raises ConflictError while another process drives it.
    """
    try:
        ray_internals.scaling()
    except MissingError as error:
        say(str(error))
    totals = Totals.read(settings.home() / "runs" / run)
    with monitored(_wish(spec, run), resizable=_is_resizable(), totals=totals) as monitor:
        yield monitor


def _wish(spec: Spec, run: str) -> Wish:
    workers = spec.train.workers
    return Wish(
        run,
        spec.name,
        room.needs(workers),
        workers.min,
        workers.max,
        priority=spec.train.priority,
        feed_cpus=room.feed_cpus(spec.data),
        since=time.time(),
    )


def _is_resizable() -> bool:
    try:
        ray_internals.scaling()
    except MissingError:
        return False
    return True


def _malloc() -> dict[str, str]:
    """How workers' memory is managed, unless somebody has said it in this process's environment."""
    return {name: os.environ.get(name, value) for name, value in MALLOC.items()}


def checkpoints_of(spec: Spec, run_folder: Path) -> str:
    """Where the checkpoints of a run are: a folder or a URI."""
    if not spec.train.checkpoint.path:
        return str(run_folder / "checkpoints")
    path, mark, options = spec.train.checkpoint.path.partition("?")
    return f"{path.rstrip('/')}/{run_folder.name}{mark}{options}"


def identity(spec: Spec, prepared: Prepared, code: Code) -> str:
    """A hash of what decides the model: spec, data and code, not where or on how many workers it is trained."""
    text = json.dumps([artifact.normalised(spec), prepared.fingerprint, code.package], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _ask_stop(monitor: Any, number: signal.Signals) -> None:
    monitor.ask_stop.remote(number.name)


def _refuse_large_batch(spec: Spec, prepared: Prepared) -> None:
    batch, rows = spec.train.global_batch, prepared.num_rows("train")
    if batch != "all" and batch > rows:
        raise DataError(
            f"train.global_batch is {batch}, but the training split has {rows} rows", remedy="lower it, or write all"
        )


class _Attempts:
    """Ray's trainer, started again under the same name after every pause."""

    def __init__(self, job: Job, prepared: Prepared, resizable: bool, say: Callable[[str], None]) -> None:
        self.job, self.prepared, self.resizable, self.say = job, prepared, resizable, say
        self.checkpoints = Checkpoints(job.checkpoints)

    def carry(self) -> Checkpoint:
        while True:
            final = self.checkpoints.latest(self.job.identity)
            if final is not None and final.state["finished"]:
                return final
            room_now = self._wait_for_room()
            self._attempt(room_now)
            action, failure = ray.get(self.job.monitor.state.remote())
            if failure is not None:
                raise failure
            final = self.checkpoints.latest(self.job.identity)
            if final is not None and final.state["finished"]:
                return final
            step = final.step if final else 0
            if action == "stop":
                raise self._stopped(step)
            if action != "pause":
                raise TrainingError(
                    f"run {self.job.name} ended at step {step} without a final checkpoint",
                    remedy=f"see {self.job.run_folder}",
                )
            self._wait_for_resume(step)

    def _stopped(self, step: int) -> StoppedError:
        return StoppedError(
            f"run {self.job.name} is stopped at step {step}",
            remedy=f"`tidegate resume {self.job.name}` goes on with it",
        )

    def _wait_for_room(self) -> int:
        """How many workers fit now; 0 when the run was asked to end meanwhile."""
        ray.get(self.job.monitor.tell_phase.remote("waiting", anew=True))

        def given_up() -> bool:
            action, failure = ray.get(self.job.monitor.state.remote())
            return action != "train" or failure is not None

        workers, feed_cpus = self.job.spec.train.workers, room.feed_cpus(self.job.spec.data)
        found = room.wait(workers, feed_cpus, self.say, given_up, _Allotment(self.job.monitor, workers.max))
        self._phase("starting")
        return found

    def _wait_for_resume(self, step: int) -> None:
        self._phase("paused")
        ray.get(self.job.monitor.tell_paused.remote(step, self.job.name))
        while ray.get(self.job.monitor.state.remote())[0] == "pause":
            time.sleep(0.2)
        if ray.get(self.job.monitor.state.remote())[0] == "stop":
            raise self._stopped(step)

    def _phase(self, phase: str) -> None:
        ray.get(self.job.monitor.tell_phase.remote(phase))

    def _attempt(self, room_now: int) -> None:
        """One `fit` of Ray's trainer, in a thread: Ray would take the main thread's SIGINT for itself."""
        if not room_now:
            return
        failures: list[BaseException] = []
        trainer = self._trainer(room_now)

        def run() -> None:
            try:
                trainer.fit()
            except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True, name=f"tidegate-{self.job.name}")
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
        if failures and not self._was_meant():
            raise _cause(failures[0]) from failures[0]

    def _was_meant(self) -> bool:
        """Whether the controller ended because the run was asked to, or failed for a reason that was told."""
        action, failure = ray.get(self.job.monitor.state.remote())
        return action != "train" or failure is not None

    def _trainer(self, room_now: int) -> TorchTrainer:
        for name, value in CONTROLLER.items():
            os.environ.setdefault(name, value)
        job, wanted, feed = self.job, self.job.spec.train.workers, self._feed()
        need = room.needs(wanted)
        scaling = ray.train.ScalingConfig(
            num_workers=(wanted.min, wanted.max if self.resizable else max(wanted.min, room_now)),
            use_gpu=bool(wanted.gpu),
            resources_per_worker={kind: amount for kind, amount in need.items() if ":" not in kind},
            accelerator_type=wanted.accelerator,
            elastic_resize_monitor_interval_s=NEVER_S,
        )
        trainer: type[TorchTrainer] = TorchTrainer
        if self.resizable:
            policy = resize.policy(scaling, job.monitor, room.feed_cpus(job.spec.data), need)
            trainer = ray_internals.with_policy(TorchTrainer, policy, datasets=bool(feed))
        return trainer(
            train_worker,
            train_loop_config={"job": job},
            scaling_config=scaling,
            torch_config=TorchConfig(backend="nccl" if wanted.gpu and room.has_real_gpus() else "gloo"),
            run_config=ray.train.RunConfig(
                name=job.name,
                storage_path=str(job.run_folder.parent),
                failure_config=ray.train.FailureConfig(max_failures=-1 if self.resizable else MAX_FAILURES),
                callbacks=[Losses(job.monitor)],
                worker_runtime_env={"env_vars": ray_internals.setup_hook("tidegate.training.boot.begin") | _malloc()},
            ),
            **feed,
        )

    def _feed(self) -> dict[str, Any]:
        """What Ray Train is told of the data: nothing, where workers read it themselves."""
        spec, prepared = self.job.spec, self.prepared
        if spec.data.resolved_feed == "local":
            return {}
        plan = plan_of(spec, prepared)
        steps = steps_per_unit(plan, row_bytes(prepared))
        work = RowWork.of(spec.data, prepared, spec.seed)
        return {
            "datasets": {"train": _Position(self.checkpoints, self.job.identity)},
            "dataset_config": PlannedShards(prepared.folder, total_steps(spec, plan), plan, steps, work),
        }


class _Allotment:
    """How many workers the arbiter lets a run start with: as many as fit, where there is none that speaks in time."""

    def __init__(self, monitor: Any, most: int) -> None:
        self.monitor, self.most = monitor, most
        self._until = time.monotonic() + ARBITER_S if arbiter_is_there() else 0.0

    def __call__(self) -> int:
        given: int | None = ray.get(self.monitor.allotment.remote())
        if given is None:
            return 0 if time.monotonic() < self._until else self.most
        return given


class _Position:
    """Called by Ray Train whenever it starts workers: the step they go on from."""

    def __init__(self, checkpoints: Checkpoints, identity: str) -> None:
        self.checkpoints, self.identity = checkpoints, identity

    def __call__(self) -> ray.data.Dataset:
        checkpoint = self.checkpoints.latest(self.identity)
        return position(checkpoint.step if checkpoint else 0)


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
