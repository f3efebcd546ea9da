"""The training loop of one worker."""

from __future__ import annotations

import time
from typing import Any

import ray
import ray.train
import torch

from tidegate import evaluation
from tidegate.data.feed import Feed, steps_per_unit
from tidegate.data.prepared import Prepared
from tidegate.errors import FeedError, TrainingError
from tidegate.metrics import CLASSIFICATION, REGRESSION
from tidegate.training import checkpoint as checkpoints
from tidegate.training import validation
from tidegate.training.job import Job, plan_of
from tidegate.training.learner import Learner
from tidegate.training.ledger import Ledger
from tidegate.training.progress import Progress

PROGRESS_EVERY_S = 0.5
KEEP_CHECKPOINTS = 2


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of every worker process. `config["job"]` is the Job."""
    worker = Worker(config["job"])
    try:
        worker.run()
    except TrainingError as error:
        # Every worker meets it at the same step, and would again after a restart: the run ends here, the driver raises.
        if worker.rank == 0:
            ray.get(worker.job.monitor.tell_failure.remote(error))


class Worker:
    """One worker of a run: feeds its learner, and on rank 0 writes checkpoints and tells the progress."""

    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.job, self.rank, self.workers = job, context.get_world_rank(), context.get_world_size()
        torch.set_num_threads(job.spec.train.workers.cpu)
        self.prepared = job.prepared()
        self.plan = plan_of(job.spec, self.prepared)
        ledger = Ledger(job.ledger, job.name, self.rank)
        self.learner = Learner(
            job.spec, self.prepared, self.plan, worker=self.rank, workers=self.workers, ledger=ledger
        )
        self.reader = self.prepared.reader("validation")
        self._saved_at = self._told_at = time.monotonic()
        self._started_at = 0.0
        self._epoch_rows, self._epoch_started_at = 0, time.monotonic()
        self._rows = self._rows_told = 0

    def run(self) -> None:
        checkpoint = checkpoints.latest(self.job.run_folder)
        if checkpoint is not None:
            self.learner.restore(checkpoint)
        stopped = self.learner.best.gives_up(len(self.learner.history))
        if not stopped:
            self._train()
        self._save(finished=True)

    def _train(self) -> None:
        shard = ray.train.get_dataset_shard("train")
        start = self.learner.step
        feed = Feed(
            shard,
            self.plan,
            start=start,
            stop=self.learner.total_steps,
            steps=steps_per_unit(self.plan, row_bytes(self.prepared)),
            worker=self.rank,
            workers=self.workers,
        )
        for step, batch in feed:
            if step != self.learner.step:
                raise FeedError(f"the feed brought step {step}, the model is at {self.learner.step}")
            if self._one_step(batch):
                return

    def _one_step(self, batch: Any) -> bool:
        """Train on one batch; whether training is over."""
        due = self.rank == 0 and time.monotonic() - self._saved_at > self.job.checkpoint_every_s
        rows = self.plan.batch_rows(self.learner.step)
        loss, save = self.learner.learn(batch, flag=due)
        self._rows += rows
        self._epoch_rows += rows
        stop = False
        if self.learner.step % self.plan.steps_per_epoch == 0:
            stop = self._finish_epoch()
        self._tell(loss)
        if save and not stop:
            self._save(finished=False)
        return stop

    def _finish_epoch(self) -> bool:
        """Validate and note the epoch; whether training should stop."""
        speed = self._epoch_rows / (time.monotonic() - self._epoch_started_at)
        learner, target = self.learner, self.prepared.target
        outputs, targets = validation.outputs(
            learner.model, self.reader, worker=self.rank, workers=self.workers, device=learner.device
        )
        names = CLASSIFICATION if self.job.spec.task == "classification" else REGRESSION
        if not target.is_category:
            outputs = outputs.reshape(-1)
        measured = evaluation.compute(self.job.spec.task, target.unscaled(outputs), target.unscaled(targets), names)
        epoch = learner.step // self.plan.steps_per_epoch
        mean = learner.take_epoch_loss() * target.loss_scale
        metrics = {"train.loss": mean} | {f"validation.{name}": value for name, value in measured.items()}
        if learner.best.improves(epoch, metrics) and learner.best.rule is not None:
            learner.keep_best()
        record = {"epoch": epoch, "step": learner.step, **metrics, "lr": learner.optimizer.param_groups[0]["lr"]}
        learner.history.append(record)
        if self.rank == 0:
            self.job.monitor.tell_epoch.remote(record | {"rows_per_s": speed})
        self._epoch_rows, self._epoch_started_at = 0, time.monotonic()
        return learner.best.gives_up(epoch)

    def _tell(self, loss: float) -> None:
        now = time.monotonic()
        if not self._started_at:
            # The first step pays for start-up: the speed is counted from its end.
            self._started_at = self._told_at = now
            self._rows = 0
        if self.rank != 0 or (now - self._told_at < PROGRESS_EVERY_S and self.learner.step < self.learner.total_steps):
            return
        speed = (self._rows - self._rows_told) / max(now - self._told_at, 1e-9)
        overall = self._rows / max(now - self._started_at, 1e-9)
        left = (self.learner.total_steps - self.learner.step) * self.plan.global_batch / max(overall, 1e-9)
        self._told_at, self._rows_told = now, self._rows
        epoch = min(self.learner.step // self.plan.steps_per_epoch + 1, self.job.spec.train.epochs)
        self.job.monitor.tell.remote(
            Progress(
                step=self.learner.step,
                total_steps=self.learner.total_steps,
                epoch=epoch,
                epochs=self.job.spec.train.epochs,
                loss=loss * self.prepared.target.loss_scale,
                rows_per_s=speed,
                workers=self.workers,
                seconds_left=left,
            )
        )

    def _save(self, *, finished: bool) -> None:
        """Checkpoint. Called by all workers at the same step: Ray's report is a barrier."""
        if self.rank == 0:
            checkpoints.write(self.job.run_folder, self.learner.checkpoint(finished=finished))
            checkpoints.prune(self.job.run_folder, KEEP_CHECKPOINTS)
        # Not handed to Ray: it would refuse to go on with the run once one it was told of has been pruned.
        ray.train.report({"step": self.learner.step})
        self._saved_at = time.monotonic()


def row_bytes(prepared: Prepared) -> int:
    """Bytes of one prepared training row."""
    train = prepared.manifest["splits"]["train"]
    size, rows = sum(int(file["bytes"]) for file in train), sum(int(file["rows"]) for file in train)
    return max(1, size // max(1, rows))
