"""A worker's model, optimizer and position: what one step does, and what a checkpoint holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tidegate.data.plan import Plan
from tidegate.errors import TrainingError
from tidegate.spec.run import Spec
from tidegate.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from tidegate.training.early_stop import BestEpoch
from tidegate.training.gradients import EXTRAS, Gradients
from tidegate.training.job import total_steps
from tidegate.training.optimizer import (
    build_optimizer,
    check_parameters,
    eager_step,
    leave_compiler_out,
    rate_factor,
    set_rates,
)
from tidegate.training.peers import exchange
from tidegate.training.reduce import FastSum, OrderedSum

DIVERGED = "lower train.optimizer.lr, or bound the gradient with train.optimizer.clip_norm"
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Learner:
    """The state that training changes. The same on every worker after every step."""

    def __init__(
        self,
        spec: Spec,
        plan: Plan,
        model: nn.Module,
        make_optimizer: MakeOptimizer | None,
        *,
        worker: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self.spec, self.plan, self.device = spec, plan, device
        self.total_steps = total_steps(spec, plan)
        self.model = model.to(device)
        self.gradients = Gradients(self.model, device)
        if not spec.train.compile:
            leave_compiler_out()
        self.optimizer = (
            make_optimizer(self.gradients.parameters)
            if make_optimizer
            else build_optimizer(spec.train.optimizer, self.gradients.parameters)
        )
        check_parameters(self.optimizer, self.gradients.parameters)
        self.optimizer.register_step_pre_hook(self._refuse_other_steps)
        self._step = self.optimizer.step if spec.train.compile else eager_step(self.optimizer)
        self._is_stepping = False
        self.gradients.attach()
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        size = self.gradients.first_extra + EXTRAS
        if spec.train.reduction == "fast":
            self._refuse_statistics()
            self.sum: OrderedSum | FastSum = FastSum(size, worker=worker, workers=workers, device=device)
        else:
            self.sum = OrderedSum(plan.shards, size, worker=worker, workers=workers, device=device)
        self.step = 0
        self.best = BestEpoch(spec.train.checkpoint.best, spec.train.early_stop)
        self.best_weights: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self._epoch_loss = {"sum": 0.0, "weight": 0.0}
        self._loss = self._weight = 0.0
        self._rows = 0

    def begin(self, shard: int) -> None:
        """Begin a shard: no gradients, and random state of its own."""
        self.gradients.clear()
        self._loss = self._weight = 0.0
        self._rows = 0
        seed = shard_seed(self.spec.seed, self.step, shard)
        # torch.manual_seed also notes the call stack for a CUDA that is not there: as long as a small forward pass.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def backward(self, loss: Tensor, weight: float, rows: int) -> None:
        """Add the gradients of some rows of the shard: `loss` is their mean, `weight` what it is the mean over."""
        if self._rows:
            self.gradients.refuse_writes()
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        self.gradients.attach()
        self._loss += float(loss.detach()) * weight
        self._weight += weight
        self._rows += rows

    def end(self) -> None:
        """End the shard. Also one without rows is begun and ended."""
        self.sum.add(self.gradients.note(self._loss, self._weight, self._rows))

    def finish(self, flag: int) -> tuple[float, int]:
        """Once all shards of this worker have ended: step. The mean loss of the whole batch, and the workers' flag.

        Raises TrainingError when the loss is not finite.
        """
        with exchange():
            total = self.sum.total(float(flag))
        loss, weight, flags = self.gradients.take(total)
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise TrainingError(
                f"the loss became {loss} at step {self.step}",
                remedy=DIVERGED,
            )
        if self.spec.train.optimizer.clip_norm is not None:
            self.gradients.clip(self.spec.train.optimizer.clip_norm)
        factor = rate_factor(self.spec.train.schedule, self.step, self.total_steps)
        set_rates(self.optimizer, [rate * factor for rate in self.rates])
        self._is_stepping = True
        self._step()
        self._is_stepping = False
        self.step += 1
        self._epoch_loss["sum"] += loss * weight
        self._epoch_loss["weight"] += weight
        return loss, flags

    def take_epoch_loss(self) -> float:
        """The mean loss over the rows since the last call."""
        taken, self._epoch_loss = self._epoch_loss, {"sum": 0.0, "weight": 0.0}
        return taken["sum"] / taken["weight"]

    def keep_best(self) -> None:
        self.best_weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def checkpoint(self, *, finished: bool, extra: dict[str, Any]) -> Checkpoint:
        """The state as it is now, not copied; `extra` goes into the checkpoint's `state`.

        Raises TrainingError when training is finished and weights are not finite: no loss after them would show it.
        """
        if finished:
            self._refuse_nonfinite()
        parts = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.best_weights:
            parts["best"] = self.best_weights
        state = {
            "finished": finished,
            "history": self.history,
            "epoch_loss": self._epoch_loss,
            "best": {"epoch": self.best.epoch, "value": self.best.value},
        }
        return Checkpoint(self.step, parts, state | extra)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises TrainingError when it is of another model."""
        try:
            self.model.load_state_dict(checkpoint.tensors["model"])
            restore_optimizer(self.optimizer, checkpoint.tensors["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise TrainingError(
                f"the checkpoint of step {checkpoint.step} does not fit the model: {reason}",
                remedy="restore the model's code, or begin a run of another name",
            ) from error
        self.gradients.remember_statistics()
        self.best_weights = {name: t.to(self.device) for name, t in checkpoint.tensors.get("best", {}).items()}
        self.best.epoch, self.best.value = (checkpoint.state["best"][key] for key in ("epoch", "value"))
        self.history = list(checkpoint.state["history"])
        self._epoch_loss = dict(checkpoint.state["epoch_loss"])
        self.step = checkpoint.step

    def _refuse_other_steps(self, *_: Any) -> None:
        if not self._is_stepping:
            raise TrainingError(
                "the loop called optimizer.step, with the gradients of one worker alone",
                remedy="leave it out: fit.step steps when the global batch is complete",
            )

    def _refuse_nonfinite(self) -> None:
        broken = [name for name, weight in self.model.named_parameters() if not weight.isfinite().all()]
        if broken:
            raise TrainingError(
                f"NaN or infinite values after the last step, in {', '.join(broken[:3])}", remedy=DIVERGED
            )

    def _refuse_statistics(self) -> None:
        if self.gradients.statistics:
            raise TrainingError(
                "the model keeps running statistics of its batches (BatchNorm), which `train.reduction: fast` would "
                "compute over other rows for another number of workers",
                remedy="write `train.reduction: ordered`, which keeps them by shard, or use LayerNorm or GroupNorm",
            )


def shard_seed(seed: int, step: int, shard: int) -> int:
    """The random state of a shard (dropout): 63 bits of a hash of seed, step and shard."""
    digest = hashlib.blake2b(f"{seed}/{step}/{shard}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
