"""What a training loop is given: the rows of each shard, exactly once, and a step that is the same on any workers.

Tidegate's own loop (loop.py) is written in these words too, so that a person's loop is resized, resumed and reduced
like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from tidegate.data.prepared import ROW, TARGET, Prepared
from tidegate.errors import FeedError, TrainingError
from tidegate.models import custom, embeddings
from tidegate.models.build import build, misfit
from tidegate.models.transformer import Transformer as TransformerModule
from tidegate.spec.model import Custom, Embeddings, Transformer
from tidegate.spec.run import Spec
from tidegate.training.job import Job
from tidegate.training.learner import Learner, MakeOptimizer
from tidegate.training.ledger import Ledger
from tidegate.training.objective import Objective, class_weights, objective
from tidegate.transforms.base import Array
from tidegate.transforms.target import TargetTransform
from tidegate.transforms.text import TextTransform

Batch = Mapping[str, Tensor]
Shards = Mapping[int, Mapping[str, Array]]


class Turns(Protocol):
    """What the worker does around a loop's steps."""

    device: torch.device

    def learner(self, model: nn.Module, make_optimizer: MakeOptimizer | None) -> Learner:
        """A learner of the model, where the run goes on."""

    def feed(self, learner: Learner) -> Iterator[tuple[int, Shards]]:
        """The steps that are left, each with this worker's shards. None when training is over already."""

    def flag(self) -> int:
        """What this worker wants all workers to do after the step."""

    def is_over(self, learner: Learner, loss: float, flag: int) -> bool:
        """After a step: whether the loop should end."""


class Fit:
    """The handle of a loop on one worker. Call `prepare`, then go through `batches`, then `step` for each."""

    def __init__(self, job: Job, prepared: Prepared, worker: Turns, ledger: Ledger) -> None:
        self.device, self.ledger = worker.device, ledger
        self._job, self._prepared, self._worker = job, prepared, worker
        self._learner: Learner | None = None
        self._open_rows = 0
        self._unnoted: list[tuple[int, Array]] = []
        self._forward = ExitStack()
        self._is_over = False

    @property
    def spec(self) -> Spec:
        return self._job.spec

    @property
    def target(self) -> TargetTransform:
        return self._prepared.target

    def objective(self) -> Objective:
        """The spec's loss: of outputs and targets the mean, and what it is the mean over."""
        return objective(self.spec, self._job.code, class_weights(self.spec, self._prepared, self.device))

    @property
    def learner(self) -> Learner:
        if self._learner is None:
            raise TrainingError("the loop has no model yet", remedy="call fit.prepare(model) first")
        return self._learner

    def build(self) -> nn.Module:
        """The model of the spec, with initial weights drawn from the spec's seed, or taken from where it says."""
        module = build(
            self.spec.model,
            self._prepared.features,
            self._prepared.target.feature,
            seed=self.spec.seed,
            code=self._job.code,
        )
        if isinstance(module, TransformerModule) and isinstance(self.spec.model, Transformer):
            self._begin(module, self.spec.model.embeddings)
        return module

    def _begin(self, module: TransformerModule, options: Embeddings | None) -> None:
        (transform,) = self._prepared.columns.transforms.values()
        if options is not None and isinstance(transform, TextTransform):
            embeddings.begin(module.tokens.weight, options, transform.tokenizer.get_vocab())

    def prepare(
        self, model: nn.Module, make_optimizer: MakeOptimizer | None = None
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model to call and its optimizer, at the state where the run goes on.

        `make_optimizer` gets the trainable parameters; without it the optimizer is the spec's. The learning rates it
        sets are multiplied by the spec's schedule. The same weights must be drawn on every worker: seed before making
        the model, or use `build`.
        """
        if self._learner is not None:
            raise TrainingError("fit.prepare was called twice", remedy="a loop trains one model")
        if isinstance(self.spec.model, Custom):
            custom.adapt(model, self._prepared.features)
        if self._job.loop is not None and (reason := misfit(self.build(), model.state_dict())):
            raise TrainingError(
                f"the loop's model is not the one that the spec's `model` makes: {reason}",
                remedy="name its class in `model: {type: custom, build: ...}`, or train what fit.build() returns",
            )
        self._learner = self._worker.learner(model, make_optimizer)
        called = self._learner.model
        if self.spec.train.compile:
            torch._dynamo.config.recompile_limit = 64
            # Past the limit it would go on without compiling: how soon depends on what a process has seen.
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            # Static shapes: whether code for any shape takes over depends on which shapes a process has seen.
            called = cast(nn.Module, torch.compile(called, dynamic=False))
        return called, self._learner.optimizer

    def batches(self, split: str = "train") -> Iterator[Batch]:
        """The rows of this worker's shards, as tensors by column, the target's included, until training is over.

        Each is `[rows of the shard (or micro-batch), ...]`. Call `step` with its loss before taking the next. Over any
        history of resizes, losses and restarts every row of the training split comes exactly once an epoch.
        """
        if split != "train":
            raise TrainingError(
                f"fit.batches({split!r})", expected='"train"', remedy="the other splits are evaluated after every epoch"
            )
        learner = self.learner
        if self._is_over:
            return
        learner.sum.discard()
        for step, shards in self._worker.feed(learner):
            if step != learner.step:
                raise FeedError(f"the feed brought step {step}, the model is at {learner.step}")
            for numbers, arrays in self._passes(shards):
                learner.begin(numbers[0])
                self._unnoted = [(number, shards[number][ROW]) for number in numbers if len(shards[number][ROW])]
                yield from self._parts(arrays)
                learner.end()
            self._is_over = self._worker.is_over(learner, *learner.finish(self._worker.flag()))
            if self._is_over:
                return

    def step(self, loss: Tensor, weight: float | None = None) -> None:
        """Backward of the batch that `batches` gave last; the optimizer steps when the global batch is complete.

        `loss` is the mean over the rows, or over whatever `weight` counts (tokens, say).
        """
        if not self._open_rows:
            raise TrainingError("fit.step was called without a batch", remedy="call it once for each of fit.batches")
        rows, self._open_rows = self._open_rows, 0
        self._forward.close()
        for shard, numbers in self._unnoted:
            self.ledger.note(self.learner.step, shard, numbers)
        self._unnoted = []
        self.learner.backward(loss, float(rows if weight is None else weight), rows)

    def _passes(self, shards: Shards) -> Iterator[tuple[list[int], Mapping[str, Array]]]:
        """What is computed at once, with its shards: one of them, or in the fast reduction all of this worker's."""
        if self.spec.train.reduction == "ordered":
            yield from (([shard], arrays) for shard, arrays in shards.items())
            return
        parts = [arrays for arrays in shards.values() if arrays]
        yield list(shards), {name: joined([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _parts(self, arrays: Mapping[str, Array]) -> Iterator[Batch]:
        total = len(arrays[ROW]) if arrays else 0
        size = self.spec.train.micro_batch or total
        for start in range(0, total, size or 1):
            part = {name: array[start : start + size] for name, array in arrays.items()} if size < total else arrays
            self._open_rows = len(part[ROW])
            batch = self._tensors(part)
            with ExitStack() as self._forward:
                if self.spec.train.precision == "bf16":
                    self._forward.enter_context(torch.autocast(self.device.type, dtype=torch.bfloat16))
                yield batch
            if self._open_rows:
                raise TrainingError("a batch was left without fit.step", remedy="call it once for each of fit.batches")

    def _tensors(self, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
        names = {TARGET: self._prepared.target.column}
        batch = {
            names.get(name, name): tensor_of(array).to(self.device, non_blocking=True)
            for name, array in arrays.items()
            if name != ROW
        }
        # Tidegate's own models take images flat as well; a person expects them as pictures.
        return batch if self._job.loop is None else batch | custom.shaped(batch, self._prepared.features)


def joined(parts: list[Array]) -> Array:
    """The parts one after the other. Not copied if they are what another array was cut into."""
    base = parts[0].base
    if base is not None and len(base) == sum(map(len, parts)) and all(part.base is base for part in parts):
        return base
    return np.concatenate(parts) if parts[1:] else parts[0]


def tensor_of(array: Array) -> Tensor:
    """Arrays in shared memory are read-only, which torch cannot express: those are copied."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
