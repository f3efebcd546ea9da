"""How a model is fitted. Nothing here but `workers` may change with the cluster; `workers` never changes the result."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from tidegate.spec.base import BrokenRules, Part


class Optimizer(Part):
    """`momentum` is SGD with momentum; `clip_norm` bounds the norm of the whole gradient."""

    type: Literal["sgd", "momentum", "adam", "adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0, le=1e3)
    weight_decay: float = Field(0.0, ge=0, le=1e3)
    momentum: float = Field(0.9, ge=0, lt=1)
    clip_norm: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Optimizer:
        if "momentum" in self.model_fields_set and self.type != "momentum":
            sentence = (
                f"momentum is given, but optimizer type {self.type!r} has none; write type momentum, or leave it out"
            )
            raise BrokenRules([("momentum", sentence), ("type", sentence)])
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A dump is a valid spec again: a momentum that is not used is not in it.
        return {key: value for key, value in plain(self).items() if key != "momentum" or self.type == "momentum"}


class Schedule(Part):
    """The learning rate over the run: a linear warm-up, then constant, or down to zero along a cosine or a line."""

    type: Literal["constant", "cosine", "linear"] = "constant"
    warmup_fraction: float = Field(0.0, ge=0, lt=1)


Metric = Annotated[str, StringConstraints(pattern=r"^validation\.[a-z0-9]+$")]


class EarlyStop(Part):
    """Stop when `metric` has not improved for `patience` epochs; the best epoch's weights are kept."""

    metric: Metric = "validation.loss"
    patience: int = Field(2, ge=1, le=10_000)


class Checkpoint(Part):
    """When the state of a run is kept, and where: under the home directory, or at a URI that pyarrow opens."""

    every_s: float = Field(60.0, gt=0, le=1e6)
    every_steps: int | None = Field(None, ge=1)
    keep: int = Field(2, ge=1, le=1000)
    best: Metric | None = None
    path: str | None = Field(None, min_length=1)


class Workers(Part):
    """How many worker processes train, the CPUs (and compute threads) of each, and whether it has a GPU."""

    min: int = Field(1, ge=1, le=4096)
    max: int = Field(1, ge=1, le=4096)
    cpu: int = Field(1, ge=1, le=1024)
    gpu: float = Field(0, ge=0, le=1)
    accelerator: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.max < self.min:
            sentence = f"max is {self.max} but min is {self.min}; make max at least min"
            raise BrokenRules([("max", sentence), ("min", sentence)])
        if self.accelerator and not self.gpu:
            sentence = "an accelerator type needs gpu: 1; write it, or leave the accelerator out"
            raise BrokenRules([("accelerator", sentence), ("gpu", sentence)])
        if 0 < self.gpu < 1 < self.max:
            sentence = "workers that share a GPU cannot exchange gradients on it; write max: 1, or gpu: 1"
            raise BrokenRules([("max", sentence), ("gpu", sentence)])
        return self


def _batch(value: Any) -> Any:
    if value != "all" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100_000_000):
        raise ValueError("write a whole number of rows from 1 to 100000000, or all")
    return value


class Train(Part):
    """How a model is fitted."""

    epochs: int = Field(10, ge=1, le=1_000_000)
    global_batch: Annotated[int | Literal["all"], BeforeValidator(_batch)] = 64
    shards: int = Field(4, ge=1, le=4096)
    micro_batch: int | None = Field(None, ge=1)
    group_by_length: bool = False
    reduction: Literal["ordered", "fast"] = "ordered"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, le=1e6)]] | None = None
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    early_stop: EarlyStop | None = None
    checkpoint: Checkpoint = Checkpoint()
    workers: Workers = Workers()
    priority: int = Field(0, ge=-1000, le=1000)

    @model_validator(mode="after")
    def _one_best(self) -> Train:
        best, stop = self.checkpoint.best, self.early_stop
        if best and stop and best != stop.metric:
            sentence = f"the best epoch is by {best} and by {stop.metric}; name one metric"
            raise BrokenRules([("checkpoint.best", sentence), ("early_stop.metric", sentence)])
        return self

    @model_validator(mode="after")
    def _every_worker_has_a_shard(self) -> Train:
        if self.shards < self.workers.max:
            sentence = (
                f"shards is {self.shards} but workers.max is {self.workers.max}; "
                "a worker needs a shard of every batch: make shards at least workers.max"
            )
            raise BrokenRules([("shards", sentence), ("workers.max", sentence)])
        return self
