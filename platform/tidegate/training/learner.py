"""A worker's model, optimizer and position: what one step does, and what a checkpoint holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tidegate.data.plan import Plan
from tidegate.data.prepared import ROW, TARGET, Prepared
from tidegate.errors import TrainingError
from tidegate.models.build import build
from tidegate.spec.run import Spec
from tidegate.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from tidegate.training.early_stop import BestEpoch
from tidegate.training.gradients import EXTRAS, Gradients
from tidegate.training.job import total_steps
from tidegate.training.ledger import Ledger
from tidegate.training.objective import loss_sum
from tidegate.training.optimizer import build_optimizer, rate_factor, set_rate
from tidegate.training.reduce import OrderedSum
from tidegate.training.validation import tensors
from tidegate.transforms.base import Array

Batch = Mapping[int, Mapping[str, Array]]


class Learner:
    """The state that training changes. The same on every worker after every step."""

    def __init__(
        self, spec: Spec, prepared: Prepared, plan: Plan, *, worker: int, workers: int, ledger: Ledger
    ) -> None:
        self.spec, self.plan, self.ledger = spec, plan, ledger
        self.device = torch.device("cpu")
        self.total_steps = total_steps(spec, plan)
        self.model = build(spec.model, prepared.features, prepared.target.num_outputs, seed=spec.seed).to(self.device)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(spec.train.optimizer, self.parameters)
        self.gradients = Gradients(self.parameters)
        size = self.gradients.count + EXTRAS
        self.sum = OrderedSum(plan.shards, size, worker=worker, workers=workers, device=self.device)
        self.step = 0
        self.best = BestEpoch(spec.train.early_stop)
        self.best_weights: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self._epoch_loss = {"sum": 0.0, "rows": 0.0}

    def learn(self, batch: Batch, *, flag: bool) -> tuple[float, bool]:
        """One step on this worker's shards; the mean loss of the whole batch, and whether any worker raised its flag.

        Raises TrainingError when the loss is not finite.
        """
        total = self.sum(lambda shard: self._shard(shard, batch[shard], flag))
        loss, rows, flagged = self.gradients.take(total)
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise TrainingError(
                f"the loss became {loss} at step {self.step}",
                remedy="lower train.optimizer.lr, or bound the gradient with train.optimizer.clip_norm",
            )
        options = self.spec.train.optimizer
        if options.clip_norm is not None:
            self.gradients.clip(options.clip_norm)
        set_rate(self.optimizer, options.lr * rate_factor(self.spec.train.schedule, self.step, self.total_steps))
        self.optimizer.step()
        self.step += 1
        self._epoch_loss = {"sum": self._epoch_loss["sum"] + loss * rows, "rows": self._epoch_loss["rows"] + rows}
        return loss, flagged

    def _shard(self, shard: int, arrays: Mapping[str, Array], flag: bool) -> Tensor:
        """Gradients and loss of one shard, by itself, from random state of its own."""
        self.gradients.clear()
        rows = arrays[ROW]
        if not len(rows):
            return self.gradients.note(0.0, 0.0, flag)
        # torch.manual_seed also notes the call stack for a CUDA that is not there: as long as a small forward pass.
        torch.default_generator.manual_seed(shard_seed(self.spec.seed, self.step, shard))
        outputs = self.model(tensors(arrays, self.device))
        loss = loss_sum(self.spec.task, outputs, torch.from_numpy(arrays[TARGET].copy()).to(self.device))
        self.ledger.note(self.step, shard, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        return self.gradients.note(loss.item(), float(len(rows)), flag)

    def take_epoch_loss(self) -> float:
        """The mean loss over the rows since the last call."""
        taken, self._epoch_loss = self._epoch_loss, {"sum": 0.0, "rows": 0.0}
        return taken["sum"] / taken["rows"]

    def keep_best(self) -> None:
        self.best_weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def checkpoint(self, *, finished: bool) -> Checkpoint:
        parts = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.best_weights:
            parts["best"] = self.best_weights
        state = {
            "finished": finished,
            "history": self.history,
            "epoch_loss": self._epoch_loss,
            "best": {"epoch": self.best.epoch, "value": self.best.value},
        }
        return Checkpoint(self.step, parts, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(checkpoint.tensors["model"])
        restore_optimizer(self.optimizer, checkpoint.tensors["optimizer"])
        self.best_weights = dict(checkpoint.tensors.get("best", {}))
        self.best.epoch, self.best.value = (checkpoint.state["best"][key] for key in ("epoch", "value"))
        self.history = list(checkpoint.state["history"])
        self._epoch_loss = dict(checkpoint.state["epoch_loss"])
        self.step = checkpoint.step


def shard_seed(seed: int, step: int, shard: int) -> int:
    """The random state of a shard (dropout): 63 bits of a hash of seed, step and shard."""
    digest = hashlib.blake2b(f"{seed}/{step}/{shard}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
