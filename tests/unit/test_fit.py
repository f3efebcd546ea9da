"""Loops, Tidegate's own and a person's, on real data: against plain torch, and against themselves on other workers.

A worker without Ray stands around each loop; in groups of several it talks to the others through gloo.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional

from tidegate.data.plan import owned_shards
from tidegate.data.prepared import ROW, TARGET, Prepared, open_folder
from tidegate.errors import FeedError, TrainingError
from tidegate.models.code import Code
from tidegate.spec.run import Spec
from tidegate.training.fit import Fit, Shards
from tidegate.training.job import Job, plan_of
from tidegate.training.learner import Learner, MakeOptimizer
from tidegate.training.ledger import Ledger
from tidegate.training.loop import standard

Loop = Callable[[Fit], None]

DIGITS: dict[str, Any] = {
    "name": "digits",
    "seed": 5,
    "data": {
        "source": {"path": "digits.parquet"},
        "inputs": {"pixels": {"type": "number", "length": 64, "scale": "none"}},
        "target": {"column": "digit", "type": "category"},
    },
    "model": {"type": "mlp", "hidden": [16]},
    "train": {"epochs": 2, "global_batch": 48, "shards": 3, "optimizer": {"type": "adam", "lr": 0.01}},
}
CODE = Code(
    {
        "nets.py": """
from torch import manual_seed, nn

def net():
    manual_seed(1)
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))

def normalised():
    manual_seed(2)
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10))
"""
    }
)
net, normalised = (CODE.resolve(f"nets:{name}", "model.build") for name in ("net", "normalised"))
NAMES = [f"x{i}" for i in range(10)]
DIABETES: dict[str, Any] = DIGITS | {
    "name": "diabetes",
    "data": {
        "source": {"path": "diabetes.parquet"},
        "inputs": {name: {"type": "number"} for name in NAMES},
        "target": {"column": "progression", "type": "number"},
    },
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, prepare_by_hand: Any) -> Prepared:
    pixels, digit = load_digits(return_X_y=True)
    # The classes are not equally common: there are a quarter of the ones, and half of the sevens.
    kept = np.flatnonzero(((digit != 1) | (np.arange(len(digit)) % 4 == 0)) & ((digit != 7) | (pixels[:, 20] > 8)))[
        :300
    ]
    table = pa.table({"pixels": (pixels[kept] / 16).tolist(), "digit": digit[kept]})
    prepared = prepare_by_hand(tmp_path_factory.mktemp("digits") / "prepared", Spec.model_validate(DIGITS), table)
    assert isinstance(prepared, Prepared)
    return prepared


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory: pytest.TempPathFactory, prepare_by_hand: Any) -> Prepared:
    inputs, progression = load_diabetes(return_X_y=True, scaled=False)
    table = pa.table(dict(zip(NAMES, inputs.T, strict=True)) | {"progression": progression})
    prepared = prepare_by_hand(tmp_path_factory.mktemp("diabetes") / "prepared", Spec.model_validate(DIABETES), table)
    assert isinstance(prepared, Prepared)
    return prepared


def own(*, build: str = "net", **train: Any) -> Spec:
    """The spec of a run on digits with a model of a person's own."""
    return spec_of(model={"type": "custom", "build": f"nets:{build}"}, **train)


def spec_of(base: dict[str, Any] = DIGITS, *, model: dict[str, Any] | None = None, **train: Any) -> Spec:
    return Spec.model_validate(base | {"model": model or base["model"], "train": base["train"] | train})


class Worker:
    """Reads the plan, and ends the loop when the run is over or after the step `until`."""

    device = torch.device("cpu")

    def __init__(
        self, spec: Spec, prepared: Prepared, *, worker: int = 0, workers: int = 1, ledger: str = "", until: int = 10**9
    ) -> None:
        self.spec, self.prepared, self.worker, self.workers, self.until = spec, prepared, worker, workers, until
        self.plan = plan_of(spec, prepared)
        self.ledger = Ledger(ledger, "run", worker)
        self.losses: list[float] = []
        self.flags: list[int] = []
        self.wanted = 0
        self.first: Callable[[Learner], None] = lambda learner: None

    def learner(self, model: nn.Module, make_optimizer: MakeOptimizer | None) -> Learner:
        learner = Learner(
            self.spec, self.plan, model, make_optimizer, worker=self.worker, workers=self.workers, device=self.device
        )
        self.first(learner)
        return learner

    def feed(self, learner: Learner) -> Iterator[tuple[int, Shards]]:
        reader = self.prepared.reader("train")
        shards = owned_shards(self.plan.shards, self.worker, self.workers)
        for step in range(learner.step, learner.total_steps):
            yield step, {shard: reader.read(self.plan.shard_rows(step, shard)) for shard in shards}

    def flag(self) -> int:
        return self.wanted

    def is_over(self, learner: Learner, loss: float, flag: int) -> bool:
        self.losses.append(loss)
        self.flags.append(flag)
        return learner.step in (learner.total_steps, self.until)

    def run(self, loop: Loop = standard) -> Learner:
        self.fit = self.fit_for(loop)
        loop(self.fit)
        return self.fit.learner

    def fit_for(self, loop: Loop) -> Fit:
        job = Job(
            spec=self.spec,
            prepared_folder=self.prepared.folder,
            run_folder=Path("run"),
            checkpoints="",
            identity="",
            monitor=None,
            code=CODE,
            loop=None if loop is standard else loop,
        )
        return Fit(job, self.prepared, self, self.ledger)


def assert_equal(one: Learner, two: Learner) -> None:
    """All that a checkpoint would hold, bit for bit."""
    first, second = (learner.checkpoint(finished=True, extra={}) for learner in (one, two))
    assert (first.step, first.state) == (second.step, second.state)
    for part, tensors in first.tensors.items():
        assert all(torch.equal(tensor, second.tensors[part][name]) for name, tensor in tensors.items())


def assert_near(one: nn.Module, two: nn.Module, relative: float) -> None:
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert float((mine - theirs).abs().max().detach()) <= relative * float(theirs.abs().max().detach())


def whole(worker: Worker, step: int, *inputs: str) -> tuple[Tensor, Tensor]:
    """Inputs `[rows, ...]` and targets `[rows]` of a whole batch."""
    arrays = worker.prepared.reader("train").read(worker.plan.rows(step, range(worker.plan.shards))[0])
    columns = [arrays[name].reshape(len(arrays[ROW]), -1) for name in inputs]
    return torch.from_numpy(np.concatenate(columns, axis=1)), torch.from_numpy(arrays[TARGET])


def own_loop(
    make_model: Callable[[], nn.Module] = net, make_optimizer: MakeOptimizer | None = None, *, zero: bool = False
) -> Loop:
    """A person's loop, which may take gradients away as loops do."""

    def loop(fit: Fit) -> None:
        model, optimizer = fit.prepare(make_model(), make_optimizer)
        for batch in fit.batches("train"):
            if zero:
                optimizer.zero_grad()
            fit.step(functional.cross_entropy(model(batch["pixels"]), batch["digit"]))

    return loop


def plain_loop(
    worker: Worker, model: nn.Module, optimizer: torch.optim.Optimizer, weights: Tensor | None = None
) -> None:
    """The same plan without Tidegate."""
    for step in range(worker.fit.learner.total_steps):
        inputs, targets = whole(worker, step, "pixels")
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets, weight=weights).backward()
        optimizer.step()


def plain_mlp(worker: Worker) -> nn.Sequential:
    module = worker.fit.build()
    layers = module.layers
    assert isinstance(layers, nn.Sequential)
    return layers


@pytest.mark.parametrize("class_weights", [None, "balanced"])
@pytest.mark.parametrize("shards", [1, 3])
def test_the_standard_loop_is_a_plain_loop_over_the_plan(
    digits: Prepared, shards: int, class_weights: str | None
) -> None:
    # SGD: Adam divides by the size of a gradient, which magnifies rounding where that is nearly zero.
    optimizer = {"type": "momentum", "lr": 0.05}
    worker = Worker(spec_of(shards=shards, optimizer=optimizer, class_weights=class_weights), digits)
    learner, plain = worker.run(), plain_mlp(worker)
    targets = digits.reader("train").read(np.arange(digits.num_rows("train")))[TARGET]
    weights = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(10), y=targets)).float()
    optimizer_ = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9)
    plain_loop(worker, plain, optimizer_, weights if class_weights else None)
    assert_near(learner.model, plain, 1e-6)
    assert len(worker.losses) == learner.step == learner.total_steps


def test_numbers_are_learnt_as_in_a_plain_loop(diabetes: Prepared) -> None:
    worker = Worker(spec_of(DIABETES, optimizer={"type": "sgd", "lr": 0.05}), diabetes)
    learner, plain = worker.run(), plain_mlp(worker)
    optimizer = torch.optim.SGD(plain.parameters(), 0.05)
    for step in range(learner.total_steps):
        inputs, targets = whole(worker, step, *NAMES)
        loss = functional.mse_loss(plain(inputs).reshape(-1), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert worker.losses[step] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_near(learner.model, plain, 1e-6)


@pytest.mark.parametrize("zero", [False, True])
def test_an_own_loop_is_a_plain_loop_over_the_plan(digits: Prepared, zero: bool) -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.8, nesterov=True)

    worker, plain = Worker(own(), digits), net()
    learner = worker.run(own_loop(net, make, zero=zero))
    plain_loop(worker, plain, make(plain.parameters()))
    assert_near(learner.model, plain, 1e-6)


def test_one_shard_of_an_own_loop_has_the_bits_of_a_plain_one(digits: Prepared) -> None:
    # 240 rows in batches of 16: times and by a power of two is exact.
    worker, plain = Worker(own(shards=1, global_batch=16), digits), net()
    assert {worker.plan.batch_rows(step) for step in range(30)} == {16}
    learner = worker.run(own_loop(net, lambda p: torch.optim.AdamW(p, 0.01)))
    plain_loop(worker, plain, torch.optim.AdamW(plain.parameters(), 0.01))
    assert all(torch.equal(a, b) for a, b in zip(learner.model.parameters(), plain.parameters(), strict=True))


def test_a_batch_has_the_inputs_and_the_target_under_their_names(digits: Prepared) -> None:
    seen = []

    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(net())
        assert model.training
        for batch in fit.batches():
            seen.append({name: (tensor.dtype, tensor.shape) for name, tensor in batch.items()})
            fit.step(functional.cross_entropy(model(batch["pixels"]), batch["digit"]))

    Worker(own(epochs=1), digits).run(loop)
    assert len(seen) == 5 * 3
    assert all(found == {"pixels": (torch.float32, (16, 64)), "digit": (torch.int64, (16,))} for found in seen)


def test_losses_over_tokens_are_weighted_by_their_number(digits: Prepared) -> None:
    """Each row has as many tokens as its digit says: those of a shard are its weight."""

    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(net(), lambda p: torch.optim.SGD(p, 0.1))
        for batch in fit.batches():
            tokens = batch["digit"].sum()
            rows = functional.cross_entropy(model(batch["pixels"]), batch["digit"], reduction="none")
            fit.step((rows * batch["digit"]).sum() / tokens, tokens)  # type: ignore[arg-type]

    worker, plain = Worker(own(), digits), net()
    learner, optimizer = worker.run(loop), torch.optim.SGD(plain.parameters(), 0.1)
    for step in range(learner.total_steps):
        inputs, targets = whole(worker, step, "pixels")
        rows = functional.cross_entropy(plain(inputs), targets, reduction="none")
        optimizer.zero_grad()
        ((rows * targets).sum() / targets.sum()).backward()
        optimizer.step()
    assert_near(learner.model, plain, 1e-6)


@pytest.mark.parametrize("reduction", ["ordered", "fast"])
@pytest.mark.parametrize("micro_batch", [1, 5, 16, 100])
def test_micro_batches_are_the_same_step_to_rounding(digits: Prepared, micro_batch: int, reduction: str) -> None:
    optimizer, sizes = {"type": "momentum", "lr": 0.05}, []

    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(fit.build())
        for batch in fit.batches():
            sizes.append(len(batch["digit"]))
            fit.step(functional.cross_entropy(model(batch), batch["digit"]))

    expected = Worker(spec_of(optimizer=optimizer), digits).run()
    worker = Worker(spec_of(optimizer=optimizer, micro_batch=micro_batch, reduction=reduction), digits)
    assert_near(worker.run(loop).model, expected.model, 1e-5)
    part = 16 if reduction == "ordered" else 48
    of_a_pass = [micro_batch] * (part // micro_batch) + [part % micro_batch] * (part % micro_batch > 0)
    assert sizes == of_a_pass * (2 * digits.num_rows("train") // part)


def test_the_fast_reduction_is_one_pass_and_the_same_to_rounding(digits: Prepared) -> None:
    optimizer, passes = {"type": "momentum", "lr": 0.05}, []

    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(fit.build())
        for batch in fit.batches():
            passes.append(len(batch["digit"]))
            fit.step(functional.cross_entropy(model(batch), batch["digit"]))

    ordered = Worker(spec_of(optimizer=optimizer), digits).run()
    fast = Worker(spec_of(optimizer=optimizer, reduction="fast"), digits)
    assert_near(fast.run(loop).model, ordered.model, 1e-5)
    assert passes == [48] * 10


@pytest.mark.parametrize("reduction", ["ordered", "fast"])
def test_shards_without_rows_are_passed_over(digits: Prepared, tmp_path: Path, reduction: str) -> None:
    few, one = (
        Worker(
            own(global_batch=4, shards=shards, reduction=reduction),
            digits,
            until=20,
            ledger=str(tmp_path / str(shards)),
        )
        for shards in (7, 1)
    )
    assert_near(few.run(own_loop()).model, one.run(own_loop()).model, 1e-4)
    assert few.losses == pytest.approx(one.losses, abs=1e-5)
    lines = ledger_of(tmp_path / "7")
    assert len(lines) == 80
    assert all(len(line["rows"]) == 1 for line in lines)


def ledger_of(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    noted = [line.pop("at") for line in lines]
    assert noted == sorted(noted)
    return lines


@pytest.mark.parametrize(("reduction", "micro_batch"), [("ordered", None), ("ordered", 6), ("fast", None), ("fast", 6)])
def test_the_ledger_has_every_row_of_each_shard_once(
    digits: Prepared, tmp_path: Path, reduction: str, micro_batch: int | None
) -> None:
    spec = spec_of(reduction=reduction, micro_batch=micro_batch)
    worker = Worker(spec, digits, ledger=str(tmp_path / "ledger"))
    worker.run()
    reader = digits.reader("train")
    expected = [
        {"step": step, "shard": shard, "rows": reader.read(worker.plan.shard_rows(step, shard))[ROW].tolist()}
        for step in range(10)
        for shard in range(3)
    ]
    assert ledger_of(tmp_path / "ledger") == expected
    for epoch in (expected[:15], expected[15:]):
        assert len({row for line in epoch for row in line["rows"]}) == sum(len(line["rows"]) for line in epoch) == 240


class Watching(nn.Sequential):
    """Notes in what type its forward pass computes, and whether the backward pass is told to do so."""

    def __init__(self) -> None:
        super().__init__(*net())
        self.forward_kinds: set[torch.dtype] = set()
        self.backward_casts: set[bool] = set()

    def forward(self, pixels: Tensor) -> Tensor:
        output: Tensor = super().forward(pixels)
        self.forward_kinds.add(output.dtype)
        output.register_hook(lambda gradient: self.backward_casts.add(torch.is_autocast_enabled("cpu")))  # type: ignore[no-untyped-call]
        return output


@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_precision_holds_in_the_forward_pass_alone(digits: Prepared, precision: str, kind: torch.dtype) -> None:
    during, after = [], []

    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(Watching())
        for batch in fit.batches():
            loss = functional.cross_entropy(model(batch["pixels"]), batch["digit"])
            during.append(torch.is_autocast_enabled("cpu"))
            fit.step(loss)
            after.append(torch.is_autocast_enabled("cpu"))

    worker = Worker(own(precision=precision, micro_batch=8), digits)
    learner = worker.run(loop)
    assert isinstance(learner.model, Watching)
    assert learner.model.forward_kinds == {kind}
    assert learner.model.backward_casts == {False}
    assert set(during) == {precision == "bf16"}
    assert not any(after)
    assert len(after) == 60
    tensors = {**learner.model.state_dict(), **learner.checkpoint(finished=True, extra={}).tensors["optimizer"]}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    full = Worker(own(), digits).run(own_loop(Watching))
    assert_near(learner.model, full.model, 0.1 if precision == "bf16" else 1e-4)


@pytest.mark.parametrize("how", ["break", "raise", "leave"])
def test_a_loop_that_ends_early_leaves_no_precision_behind(digits: Prepared, how: str) -> None:
    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(net())
        for batch in fit.batches():
            if how == "break":
                break
            if how == "raise":
                raise OSError("as a loop may")
            model(batch["pixels"])

    worker = Worker(own(precision="bf16"), digits)
    try:
        worker.run(loop)
    except (OSError, TrainingError) as error:
        assert how in ("raise", "leave")
        # What holds the loop's frame, and so its batches.
        del error
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_the_same_to_rounding(
    digits: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    linear = {"model": {"type": "linear"}, "optimizer": {"type": "sgd", "lr": 0.1}, "shards": 2}
    plain, compiled = (Worker(spec_of(**linear, compile=compile_), digits, until=3) for compile_ in (False, True))
    called = []

    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(fit.build())
        called.append(model)
        for batch in fit.batches():
            fit.step(functional.cross_entropy(model(batch), batch["digit"]))

    assert_near(compiled.run(loop).model, plain.run(loop).model, 1e-5)
    assert [model is worker.fit.learner.model for model, worker in zip(called, (compiled, plain), strict=True)] == [
        False,
        True,
    ]
    assert list(compiled.fit.learner.model.state_dict()) == list(plain.fit.learner.model.state_dict())
    assert list(tmp_path.rglob("*.cpp"))
    # Past its limit torch would go on uncompiled: how soon depends on what the process has compiled before.
    assert torch._dynamo.config.fail_on_recompile_limit_hit


def test_the_model_of_a_loop_is_the_specs(digits: Prepared) -> None:
    with pytest.raises(TrainingError, match="not the one that the spec's `model` makes") as caught:
        Worker(own(build="normalised"), digits).run(own_loop(net))
    assert "fit.build()" in caught.value.remedy


@pytest.mark.parametrize("micro_batch", [None, 6])
def test_gradients_that_a_loop_wipes_out_in_a_shard_are_an_error(digits: Prepared, micro_batch: int | None) -> None:
    def loop(fit: Fit) -> None:
        model, optimizer = fit.prepare(net())
        for batch in fit.batches():
            optimizer.zero_grad(set_to_none=False)
            fit.step(functional.cross_entropy(model(batch["pixels"]), batch["digit"]))

    worker = Worker(own(micro_batch=micro_batch), digits)
    if micro_batch is None:
        assert_equal(worker.run(loop), Worker(own(), digits).run(own_loop()))
        return
    with pytest.raises(TrainingError, match="between the micro-batches of a shard"):
        worker.run(loop)


def test_a_loop_may_not_step_by_itself(digits: Prepared) -> None:
    def loop(fit: Fit) -> None:
        model, optimizer = fit.prepare(net(), lambda p: torch.optim.Adam(p, 0.01))
        for batch in fit.batches():
            fit.step(functional.cross_entropy(model(batch["pixels"]), batch["digit"]))
            optimizer.step()

    worker = Worker(own(epochs=30), digits)
    with pytest.raises(TrainingError, match=r"the loop called optimizer\.step") as caught:
        worker.run(loop)
    assert "leave it out" in caught.value.remedy
    assert all(
        torch.equal(a, b) for a, b in zip(worker.fit.learner.model.parameters(), net().parameters(), strict=True)
    )


def test_flags_travel_with_each_step(digits: Prepared) -> None:
    worker = Worker(spec_of(), digits)
    worker.wanted = 2
    worker.run()
    assert worker.flags == [2] * 10


def never(fit: Fit) -> None:
    model, _ = fit.prepare(net())
    for batch in fit.batches():
        model(batch["pixels"])


def twice(fit: Fit) -> None:
    model, _ = fit.prepare(net())
    for batch in fit.batches():
        for _ in range(2):
            fit.step(functional.cross_entropy(model(batch["pixels"]), batch["digit"]))


def without_batch(fit: Fit) -> None:
    model, _ = fit.prepare(net())
    fit.step(model(torch.ones(1, 64)).sum())


def prepared_twice(fit: Fit) -> None:
    fit.prepare(net())
    fit.prepare(net())


def other_split(fit: Fit) -> None:
    fit.prepare(net())
    list(fit.batches("validation"))


@pytest.mark.parametrize(
    ("loop", "happened", "remedy"),
    [
        (never, "a batch was left without fit.step", "once for each"),
        (twice, "fit.step was called without a batch", "once for each"),
        (without_batch, "fit.step was called without a batch", "once for each"),
        (prepared_twice, "fit.prepare was called twice", "one model"),
        (other_split, "fit.batches('validation')", "after every epoch"),
        (lambda fit: next(fit.batches()), "the loop has no model yet", "fit.prepare(model)"),
        (lambda fit: fit.step(torch.ones(())), "fit.step was called without a batch", "once for each"),
        (lambda fit: fit.learner, "the loop has no model yet", "fit.prepare(model)"),
    ],
)
def test_a_loop_that_is_written_wrongly_is_told_so(digits: Prepared, loop: Loop, happened: str, remedy: str) -> None:
    with pytest.raises(TrainingError) as caught:
        Worker(own(), digits).run(loop)
    assert caught.value.happened == happened
    assert remedy in caught.value.remedy


def test_a_loss_that_is_not_finite_ends_the_run(diabetes: Prepared) -> None:
    optimizer = {"type": "sgd", "lr": 1000.0}
    worker = Worker(spec_of(DIABETES, model={"type": "linear"}, optimizer=optimizer, epochs=40), diabetes)
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step \d+") as caught:
        worker.run()
    assert f"at step {len(worker.losses)}" in caught.value.happened
    assert np.isfinite(worker.losses).all()


def test_rows_of_another_step_are_refused(digits: Prepared) -> None:
    class Ahead(Worker):
        def feed(self, learner: Learner) -> Iterator[tuple[int, Shards]]:
            return ((step + (step == 2), shards) for step, shards in super().feed(learner))

    worker = Ahead(spec_of(), digits)
    with pytest.raises(FeedError, match="the feed brought step 3, the model is at 2"):
        worker.run()


def test_batches_that_are_over_stay_over(digits: Prepared) -> None:
    """A loop over epochs ends when training does, also when it was asked to end before the last step."""
    passes = []

    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(net())
        for _ in range(5):
            for batch in fit.batches():
                passes.append(len(batch["digit"]))
                fit.step(functional.cross_entropy(model(batch["pixels"]), batch["digit"]))

    learner = Worker(own(), digits, until=4).run(loop)
    assert learner.step == 4
    assert len(passes) == 4 * 3


@pytest.mark.parametrize("reduction", ["ordered", "fast"])
def test_a_step_that_was_left_in_the_middle_is_done_anew(digits: Prepared, reduction: str) -> None:
    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(net())
        for stop in (1, 2, 5, 7, 10**9):
            for number, batch in enumerate(fit.batches()):
                if number == stop:
                    break
                fit.step(functional.cross_entropy(model(batch["pixels"]), batch["digit"]))

    spec = own(micro_batch=8, reduction=reduction)
    assert_equal(Worker(spec, digits).run(loop), Worker(spec, digits).run(own_loop()))


@pytest.mark.parametrize("until", [1, 5, 9])
def test_a_restored_loop_goes_on_with_the_same_bits(digits: Prepared, until: int) -> None:
    spec = own(build="normalised", schedule={"type": "cosine", "warmup_fraction": 0.2}, micro_batch=6)
    loop = own_loop(normalised, lambda p: torch.optim.NAdam(p, 0.01), zero=True)
    straight, first, second = (Worker(spec, digits, until=end) for end in (10, until, 10))
    checkpoint = first.run(loop).checkpoint(finished=False, extra={})
    torch.manual_seed(99)
    second.first = lambda learner: learner.restore(checkpoint)
    assert_equal(second.run(loop), straight.run(loop))
    assert first.losses + second.losses == straight.losses


def test_arrays_that_may_not_be_written_to_reach_the_model_as_copies(digits: Prepared) -> None:
    class ReadOnly(Worker):
        def feed(self, learner: Learner) -> Iterator[tuple[int, Shards]]:
            for step, shards in super().feed(learner):
                for array in (array for arrays in shards.values() for array in arrays.values()):
                    array.flags.writeable = False
                yield step, shards

    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(net())
        for batch in fit.batches():
            loss = functional.cross_entropy(model(batch["pixels"].mul_(1)), batch["digit"])
            fit.step(loss)

    assert_equal(ReadOnly(own(), digits).run(loop), Worker(own(), digits).run(own_loop()))


RUNS: dict[str, tuple[Spec, Loop]] = {
    "standard": (spec_of(shards=5, model={"type": "mlp", "hidden": [16], "dropout": 0.2}), standard),
    "few rows": (spec_of(shards=5, global_batch=3, epochs=1), standard),
    "own": (
        own(build="normalised", shards=4, micro_batch=7),
        own_loop(normalised, lambda p: torch.optim.AdamW(p, 0.01)),
    ),
    "fast": (spec_of(shards=4, reduction="fast", optimizer={"type": "momentum", "lr": 0.05}), standard),
}


def digest(learner: Learner) -> str:
    found = learner.checkpoint(finished=True, extra={})
    text = [json.dumps(dict(found.state))]
    for part, tensors in sorted(found.tensors.items()):
        text += [f"{part} {name} {tensor.numpy().tobytes().hex()}" for name, tensor in sorted(tensors.items())]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


def in_groups(number: int, folder: Path, prepared: Prepared) -> None:
    """One of three processes: runs all loops in groups of two and of three, and writes what became of them."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for workers in (2, 3):
        if number >= workers:
            continue
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/group-{workers}", rank=number, world_size=workers
        )
        for name, (spec, loop) in RUNS.items():
            learner = Worker(spec, prepared, worker=number, workers=workers).run(loop)
            weights = [value.detach().reshape(-1).tolist() for value in learner.model.parameters()]
            found[f"{name} {workers}"] = [digest(learner), weights if name == "fast" else None]
        torch.distributed.destroy_process_group()
    (folder / f"{number}.json").write_text(json.dumps(found))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_real_groups_of_workers_make_the_model_of_one(digits: Prepared, tmp_path: Path) -> None:
    alone = {name: Worker(spec, digits).run(loop) for name, (spec, loop) in RUNS.items()}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(number), str(tmp_path), str(digits.folder)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        for number in range(3)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for number in range(3):
        found: Mapping[str, Any] = json.loads((tmp_path / f"{number}.json").read_text())
        assert len(found) == 4 * (2 - (number == 2))
        for key, (digest_, weights) in found.items():
            name = key.rpartition(" ")[0]
            if name != "fast":
                assert digest_ == digest(alone[name]), key
                continue
            for mine, theirs in zip(weights, alone[name].model.parameters(), strict=True):
                assert torch.allclose(torch.tensor(mine), theirs.detach().reshape(-1), atol=1e-5)


if __name__ == "__main__":
    in_groups(int(sys.argv[1]), Path(sys.argv[2]), open_folder(Path(sys.argv[3])))


def test_the_loop_of_the_page_learns(digits: Prepared) -> None:
    page = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text()
    source = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[1]
    module: dict[str, Any] = {"__name__": "of_the_page"}
    exec(source.replace('batch["label"]', 'batch["digit"]'), module)
    worker = Worker(own(epochs=30), digits)
    worker.run(module["loop"])
    assert np.mean(worker.losses[-5:]) < 0.8 * worker.losses[0]
