"""The training loop of one worker: Tidegate's own loop, and what happens around the steps of any loop."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

from tidegate import disk, evaluation
from tidegate.data.feed import Feed, steps_per_unit
from tidegate.data.local_feed import LocalFeed
from tidegate.data.prepared import Prepared
from tidegate.errors import TidegateError, TrainingError
from tidegate.training import boot, validation
from tidegate.training.checkpoint import Checkpoints, differences, environment
from tidegate.training.counter import StepCounter
from tidegate.training.fit import Fit, Shards
from tidegate.training.job import Job, plan_of
from tidegate.training.learner import Learner, MakeOptimizer
from tidegate.training.ledger import Ledger
from tidegate.training.orders import FLAGS, Orders
from tidegate.training.pace import Pace
from tidegate.training.peers import PeerLostError
from tidegate.training.progress import Progress
from tidegate.training.saver import Saver
from tidegate.transforms.augment import RowWork


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of every worker process. `config["job"]` is the Job."""
    job: Job = config["job"]
    boot.end()
    try:
        worker = Worker(job)
        (job.loop or standard)(worker.fit)
        worker.end()
    except PeerLostError:
        # Ray restarts the group; what went wrong is told by the worker that it went wrong in.
        raise
    except Exception as error:
        ray.get(job.monitor.tell_failure.remote(as_failure(error)))
        raise


def as_failure(error: Exception) -> TidegateError:
    """An error of the loop, the model or the data as the person should see it: it would come again after a restart."""
    if isinstance(error, TidegateError):
        return error
    if refused := disk.refusal(error):
        return refused
    lines = str(error).strip().splitlines() or [""]
    return TrainingError(f"the loop raised {type(error).__name__}: {lines[0]}{_place(error)}")


def _place(error: Exception) -> str:
    """Where an error came from: the last line of somebody's own code that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).parent
    own = [f for f in frames if "site-packages" not in f.filename and Path(f.filename).parent != here] or frames
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _device(job: Job) -> torch.device:
    """A GPU may be only a number to Ray: then the worker holds it and computes on its CPU."""
    has_gpu = bool(job.spec.train.workers.gpu) and torch.cuda.is_available()
    return ray.train.torch.get_device() if has_gpu else torch.device("cpu")


def standard(fit: Fit) -> None:
    """Tidegate's own loop: the spec's model, optimizer and objective."""
    model, _ = fit.prepare(fit.build())
    loss_of = fit.objective()
    for batch in fit.batches("train"):
        fit.step(*loss_of(model(batch), batch[fit.target.column]))


class Worker:
    """One worker of a run: feeds its loop, and on rank 0 writes checkpoints, tells the progress and takes orders."""

    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.job, self.rank, self.workers = job, context.get_world_rank(), context.get_world_size()
        torch.set_num_threads(job.spec.train.workers.cpu)
        self.device = _device(job)
        self.prepared = job.prepared()
        self.plan = plan_of(job.spec, self.prepared)
        self.fit = Fit(job, self.prepared, self, Ledger(job.ledger, job.name, self.rank))
        self.validation = self.prepared.reader("validation")
        self._is_leaving = False
        self._progress = Pace()
        if self.rank == 0:
            self._checkpoints = Checkpoints(job.checkpoints)
            self._saver = Saver(self._checkpoints, job.spec.train.checkpoint.keep)
            self._counter = StepCounter(job.run_folder / "steps")

    def learner(self, model: nn.Module, make_optimizer: MakeOptimizer | None) -> Learner:
        learner = Learner(
            self.job.spec,
            self.plan,
            model,
            make_optimizer,
            worker=self.rank,
            workers=self.workers,
            device=self.device,
        )
        checkpoint = Checkpoints(self.job.checkpoints).latest(self.job.identity)
        if checkpoint is not None:
            learner.restore(checkpoint)
        if self.rank == 0:
            if checkpoint is not None:
                for sentence in differences(checkpoint.state["environment"], environment(self.device)):
                    self.job.monitor.tell_line.remote(sentence)
            started = self.job.monitor.tell_started.remote(learner.step, self.workers, self._counter.read())
            self._counter.write(learner.step)
            self._orders = Orders(self.job.monitor, ray.get(started))
        return learner

    def feed(self, learner: Learner) -> Iterator[tuple[int, Shards]]:
        if learner.best.gives_up(len(learner.history)):
            return iter(())
        work = RowWork.of(self.job.spec.data, self.prepared, self.job.spec.seed)
        self._progress.begin()
        if self.job.spec.data.resolved_feed == "local":
            local = LocalFeed(
                self.prepared,
                self.plan,
                start=learner.step,
                stop=learner.total_steps,
                worker=self.rank,
                workers=self.workers,
                work=work,
            )
            return iter(local)
        shard = ray.train.get_dataset_shard("train")
        steps = steps_per_unit(self.plan, row_bytes(self.prepared))
        stop = learner.total_steps
        feed = Feed(
            shard, self.plan, start=learner.step, stop=stop, steps=steps, worker=self.rank, workers=self.workers
        )
        return iter(feed)

    def flag(self) -> int:
        return self._orders.flag if self.rank == 0 else 0

    def is_over(self, learner: Learner, loss: float, flag: int) -> bool:
        """After every step: count it, end the epoch, tell, save, obey. Whether the loop should end."""
        rows = self.plan.batch_rows(learner.step - 1)
        self._progress.step(rows)
        over = learner.step == learner.total_steps
        if learner.step % self.plan.steps_per_epoch == 0:
            over = self._finish_epoch(learner) or over
        if self.rank == 0:
            self._counter.write(learner.step)
            self._tell(learner, loss, over)
        if flag and not over:
            return self._obey(learner, flag)
        if self.rank == 0 and not over and self._is_due(learner):
            self._save(learner, finished=False)
        return over

    def end(self) -> None:
        """After the loop: the final checkpoint, unless the run goes on elsewhere."""
        learner = self.fit.learner
        if self.rank == 0 and not self._is_leaving:
            self._save(learner, finished=True)
            self._saver.wait()

    def _obey(self, learner: Learner, flag: int) -> bool:
        self._is_leaving = True
        if flag == FLAGS["abort"]:
            return True
        if self.rank == 0:
            self._save(learner, finished=False)
            with self._progress.checkpointing():
                self._saver.wait()
            self._tell(learner, self._progress.loss, True)
            order = "yield" if flag == FLAGS["yield"] else "leave"
            ray.get(self.job.monitor.tell_saved.remote(order))
        while flag == FLAGS["yield"]:
            # Returning would end the run: Ray's controller replaces this process.
            time.sleep(1)
        return True

    def _is_due(self, learner: Learner) -> bool:
        rule = self.job.spec.train.checkpoint
        every = rule.every_steps is not None and learner.step % rule.every_steps == 0
        return every or time.monotonic() - self._progress.saved_at > rule.every_s

    def _save(self, learner: Learner, *, finished: bool) -> None:
        extra = {"identity": self.job.identity, "environment": environment(self.device)}
        with self._progress.checkpointing():
            self._saver.save(learner.checkpoint(finished=finished, extra=extra))
        self._progress.saved_at = time.monotonic()

    def _finish_epoch(self, learner: Learner) -> bool:
        """Validate and note the epoch; whether training should stop."""
        target = self.prepared.target
        with self._progress.validating():
            outputs, targets = validation.outputs(
                learner.model, self.validation, target, worker=self.rank, workers=self.workers, device=self.device
            )
        measured = evaluation.measured(target, outputs, targets)
        epoch = learner.step // self.plan.steps_per_epoch
        mean = learner.take_epoch_loss() * target.loss_scale
        metrics = {"train.loss": mean} | {f"validation.{name}": value for name, value in measured.items()}
        if learner.best.improves(epoch, metrics) and learner.best.metric is not None:
            learner.keep_best()
        record = {"epoch": epoch, "step": learner.step, **metrics, "lr": learner.optimizer.param_groups[0]["lr"]}
        learner.history.append(record)
        if self.rank == 0:
            self.job.monitor.tell_epoch.remote(record | {"rows_per_s": self._progress.epoch_speed()})
        return learner.best.gives_up(epoch)

    def _tell(self, learner: Learner, loss: float, now: bool) -> None:
        self._progress.loss = loss
        if not (now or self._progress.is_due()):
            return
        epoch = min((learner.step - 1) // self.plan.steps_per_epoch + 1, self.job.spec.train.epochs)
        speed, overall = self._progress.speeds()
        left = (learner.total_steps - learner.step) * self.plan.global_batch
        self.job.monitor.tell.remote(
            Progress(
                step=learner.step,
                total_steps=learner.total_steps,
                epoch=epoch,
                epochs=self.job.spec.train.epochs,
                loss=loss * self.prepared.target.loss_scale,
                rows_per_s=speed,
                workers=self.workers,
                seconds_left=left / overall if overall else 0.0,
                training_s=self._progress.training_s,
                checkpointing_s=self._progress.checkpointing_s,
                checkpoints=self._saver.written,
            )
        )


def row_bytes(prepared: Prepared) -> int:
    """Bytes of one prepared training row."""
    train = prepared.manifest["splits"]["train"]
    size, rows = sum(int(file["bytes"]) for file in train), sum(int(file["rows"]) for file in train)
    return max(1, size // max(1, rows))
