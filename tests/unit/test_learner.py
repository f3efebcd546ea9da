"""What a step does to a model, on real data and one worker: against torch, least squares and scikit-learn."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from tidegate.data.plan import Plan
from tidegate.data.prepared import ROW, TARGET, Prepared
from tidegate.errors import TrainingError
from tidegate.models.build import build
from tidegate.spec.run import Spec
from tidegate.training import checkpoint as checkpoints
from tidegate.training.gradients import EXTRAS, Gradients
from tidegate.training.job import plan_of, total_steps
from tidegate.training.learner import Learner, shard_seed
from tidegate.training.ledger import Ledger

IRIS = {
    "name": "iris",
    "seed": 3,
    "data": {
        "source": {"path": "iris.parquet"},
        "inputs": {"measures": {"type": "number", "length": 4}},
        "target": {"column": "species", "type": "category"},
    },
    "model": {"type": "mlp", "hidden": [16]},
    "train": {"epochs": 4, "global_batch": 32, "shards": 3, "optimizer": {"type": "sgd", "lr": 0.1}},
}


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory, prepare_by_hand: Any) -> Prepared:
    measures, species = load_iris(return_X_y=True)
    table = pa.table({"measures": measures.tolist(), "species": species})
    return prepare_by_hand(tmp_path_factory.mktemp("iris") / "prepared", Spec.model_validate(IRIS), table)


def spec_of(*, model: dict[str, Any] | None = None, **train: Any) -> Spec:
    return Spec.model_validate(IRIS | {"model": model or IRIS["model"], "train": IRIS["train"] | train})  # type: ignore[operator]


def learner_of(spec: Spec, prepared: Prepared, ledger: str = "") -> Learner:
    return Learner(spec, prepared, plan_of(spec, prepared), worker=0, workers=1, ledger=Ledger(ledger, "run", 0))


def batch_of(prepared: Prepared, plan: Plan, step: int) -> dict[int, dict[str, Any]]:
    reader = prepared.reader("train")
    return {shard: reader.read(plan.shard_rows(step, shard)) for shard in range(plan.shards)}


def train(learner: Learner, prepared: Prepared, until: int | None = None) -> list[float]:
    """The loss of each step."""
    stop = learner.total_steps if until is None else until
    return [learner.learn(batch_of(prepared, learner.plan, step), flag=False)[0] for step in range(learner.step, stop)]


def whole(prepared: Prepared, plan: Plan, step: int) -> tuple[Tensor, Tensor]:
    """Inputs `[rows, 4]` and targets `[rows]` of a whole batch."""
    parts = list(batch_of(prepared, plan, step).values())
    return tuple(torch.from_numpy(np.concatenate([part[key] for part in parts])) for key in ("measures", TARGET))  # type: ignore[return-value]


def test_losses_go_down(iris: Prepared) -> None:
    losses = train(learner_of(spec_of(epochs=60, optimizer={"type": "adam", "lr": 0.03}), iris), iris)
    assert losses[0] > 0.7
    assert np.mean(losses[-4:]) < 0.15
    assert all(math.isfinite(loss) for loss in losses)


OPTIMIZERS = [
    ({"type": "sgd", "lr": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1)),
    ({"type": "sgd", "lr": 0.1, "weight_decay": 0.3}, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3)),
    (
        {"type": "momentum", "lr": 0.1, "momentum": 0.8, "weight_decay": 0.1},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.1),
    ),
    ({"type": "adam", "lr": 0.01, "weight_decay": 0.1}, lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1)),
    ({"type": "adamw", "lr": 0.01, "weight_decay": 0.5}, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5)),
]


def twin(spec: Spec, prepared: Prepared) -> nn.Sequential:
    """A module of torch's own with the same initial weights."""
    (hidden,) = spec.model.hidden  # type: ignore[union-attr]
    plain = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Dropout(0.0), nn.Linear(hidden, 3))
    weights = build(spec.model, prepared.features, 3, seed=spec.seed).state_dict()
    plain.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in weights.items()})
    return plain


def gap(learner: Learner, plain: nn.Module) -> float:
    pairs = zip(learner.model.parameters(), plain.parameters(), strict=True)
    return max(float((mine - theirs).abs().max().detach()) for mine, theirs in pairs)


@pytest.mark.parametrize(("options", "make"), OPTIMIZERS, ids=[str(options) for options, _ in OPTIMIZERS])
@pytest.mark.parametrize("shards", [1, 4])
def test_steps_are_those_of_torch_on_the_whole_batch(
    iris: Prepared, options: dict[str, Any], make: Any, shards: int
) -> None:
    spec = spec_of(optimizer=options, shards=shards, epochs=2)
    learner, plain = learner_of(spec, iris), twin(spec, iris)
    optimizer = make(plain.parameters())
    for step in range(learner.total_steps):
        loss, _ = learner.learn(batch_of(iris, learner.plan, step), flag=False)
        inputs, targets = whole(iris, learner.plan, step)
        expected = functional.cross_entropy(plain(inputs), targets)
        optimizer.zero_grad()
        expected.backward()
        for mine, theirs in zip(learner.model.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(mine.grad, theirs.grad, rtol=0, atol=1e-6)  # type: ignore[arg-type]
        optimizer.step()
        assert loss == pytest.approx(float(expected.detach()), abs=1e-6)
        # Adam divides by the size of the gradient, which magnifies rounding where that is nearly zero.
        assert gap(learner, plain) < (1e-4 if "adam" in options["type"] else 1e-6)


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_schedules_are_those_of_torch(iris: Prepared, kind: str, warmup: float) -> None:
    options = {"type": "sgd", "lr": 0.1}
    spec = spec_of(optimizer=options, schedule={"type": kind, "warmup_fraction": warmup}, epochs=4)
    learner, plain = learner_of(spec, iris), twin(spec, iris)
    total = learner.total_steps
    first = round(warmup * total)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    after = {
        "constant": torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "cosine": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - first),
        "linear": torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=total - first),
    }[kind]
    for step in range(total):
        if step < first:
            optimizer.param_groups[0]["lr"] = 0.1 * (step + 1) / first
        elif step == first:
            optimizer.param_groups[0]["lr"] = 0.1
        learner.learn(batch_of(iris, learner.plan, step), flag=False)
        inputs, targets = whole(iris, learner.plan, step)
        optimizer.zero_grad()
        functional.cross_entropy(plain(inputs), targets).backward()
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if step >= first:
            after.step()
    assert gap(learner, plain) < 1e-5


@pytest.mark.parametrize("bound", [0.05, 1e6])
def test_clip_norm_bounds_the_whole_gradient(iris: Prepared, bound: float) -> None:
    spec = spec_of(optimizer={"type": "sgd", "lr": 0.1, "clip_norm": bound})
    learner, plain = learner_of(spec, iris), twin(spec, iris)
    learner.learn(batch_of(iris, learner.plan, 0), flag=False)
    inputs, targets = whole(iris, learner.plan, 0)
    functional.cross_entropy(plain(inputs), targets).backward()
    norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in plain.parameters()))  # type: ignore[union-attr]
    assert norm > 0.05
    for mine, theirs in zip(learner.parameters, plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad * min(1.0, bound / norm), rtol=0, atol=1e-6)  # type: ignore[arg-type,operator]
    clipped = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in learner.parameters))  # type: ignore[union-attr]
    assert clipped == pytest.approx(min(bound, norm), rel=1e-4)


def test_a_batch_smaller_than_its_shards_is_the_same_step(iris: Prepared) -> None:
    few, one = (learner_of(spec_of(global_batch=2, shards=shards, epochs=1), iris) for shards in (5, 1))
    batch = batch_of(iris, few.plan, 0)
    assert [len(arrays[ROW]) for arrays in batch.values()].count(0) == 3
    for step in range(10):
        losses = [learner.learn(batch_of(iris, learner.plan, step), flag=False)[0] for learner in (few, one)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert max(float((a - b).abs().max().detach()) for a, b in zip(few.parameters, one.parameters, strict=True)) < 1e-6


def test_a_last_batch_of_fewer_rows_weighs_each_row_alike(iris: Prepared) -> None:
    spec = spec_of(global_batch=50, shards=4, epochs=1)
    learner, plain = learner_of(spec, iris), twin(spec, iris)
    assert learner.plan.batch_rows(learner.total_steps - 1) == 20
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(learner.total_steps):
        learner.learn(batch_of(iris, learner.plan, step), flag=False)
        inputs, targets = whole(iris, learner.plan, step)
        optimizer.zero_grad()
        functional.cross_entropy(plain(inputs), targets).backward()
        optimizer.step()
    assert gap(learner, plain) < 1e-6


@pytest.mark.parametrize("flags", [(False, False), (True, True)])
def test_the_flag_travels_even_with_shards_that_are_empty(iris: Prepared, flags: tuple[bool, bool]) -> None:
    learner = learner_of(spec_of(global_batch=2, shards=5), iris)
    assert learner.learn(batch_of(iris, learner.plan, 0), flag=flags[0])[1] is flags[1]


RESUMED = [
    {"type": "adamw", "lr": 0.01, "weight_decay": 0.1},
    {"type": "momentum", "lr": 0.05},
    {"type": "sgd", "lr": 0.05},
]


@pytest.mark.parametrize("optimizer", RESUMED, ids=[str(options["type"]) for options in RESUMED])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(
    iris: Prepared, tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    model = {"type": "mlp", "hidden": [16, 8], "dropout": 0.4}
    spec = spec_of(model=model, optimizer=optimizer, schedule={"type": "cosine", "warmup_fraction": 0.1})
    learner, middle = learner_of(spec, iris), 6
    assert middle % learner.plan.steps_per_epoch
    train(learner, iris, until=middle)
    checkpoints.write(tmp_path, learner.checkpoint(finished=False))
    torch.manual_seed(123)
    resumed = learner_of(spec, iris)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    resumed.restore(found)
    assert resumed.step == middle
    assert train(learner, iris) == train(resumed, iris)
    one, two = learner.checkpoint(finished=True), resumed.checkpoint(finished=True)
    assert one.step == two.step == learner.total_steps
    assert one.tensors.keys() == two.tensors.keys()
    for part, tensors in one.tensors.items():
        assert tensors.keys() == two.tensors[part].keys()
        assert all(torch.equal(tensor, two.tensors[part][name]) for name, tensor in tensors.items())
    assert (optimizer["type"] == "sgd") == (not one.tensors["optimizer"])


def test_dropout_is_drawn_anew_for_each_shard_and_step_from_the_seed_alone(iris: Prepared) -> None:
    spec = spec_of(model={"type": "mlp", "hidden": [32], "dropout": 0.5})
    torch.manual_seed(1)
    losses = train(learner_of(spec, iris), iris)
    torch.manual_seed(2)
    assert train(learner_of(spec, iris), iris) == losses
    other = spec.model_copy(update={"seed": 4})
    assert train(learner_of(other, iris), iris) != losses
    seeds = {shard_seed(seed, step, shard) for seed in range(5) for step in range(20) for shard in range(8)}
    assert len(seeds) == 5 * 20 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_best_weights_survive_a_checkpoint_apart_from_the_later_ones(iris: Prepared, tmp_path: Path) -> None:
    spec = spec_of(early_stop={"metric": "validation.accuracy"})
    learner = learner_of(spec, iris)
    train(learner, iris, until=3)
    assert learner.best.improves(1, {"validation.accuracy": 0.5})
    learner.keep_best()
    kept = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    train(learner, iris, until=6)
    checkpoints.write(tmp_path, learner.checkpoint(finished=False))
    resumed = learner_of(spec, iris)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    resumed.restore(found)
    assert all(torch.equal(resumed.best_weights[name], tensor) for name, tensor in kept.items())
    assert not torch.equal(resumed.model.state_dict()["layers.0.weight"], kept["layers.0.weight"])
    assert (resumed.best.epoch, resumed.best.value) == (1, 0.5)


def test_a_loss_that_is_not_finite_is_an_error_with_a_remedy(iris: Prepared) -> None:
    learner = learner_of(spec_of(optimizer={"type": "sgd", "lr": 1000.0}, epochs=40), iris)
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step \d+") as caught:
        train(learner, iris)
    assert "train.optimizer.lr" in caught.value.remedy
    assert "clip_norm" in caught.value.remedy


def test_linear_regression_on_all_rows_at_once_approaches_least_squares(tmp_path: Path, prepare_by_hand: Any) -> None:
    inputs, progression = load_diabetes(return_X_y=True, scaled=False)
    names = [f"x{i}" for i in range(inputs.shape[1])]
    spec = Spec.model_validate(
        {
            "name": "diabetes",
            "data": {
                "source": {"path": "diabetes.parquet"},
                "inputs": {name: {"type": "number"} for name in names},
                "target": {"column": "progression", "type": "number"},
            },
            "model": {"type": "linear"},
            "train": {
                "epochs": 3000,
                "global_batch": "all",
                "shards": 2,
                "optimizer": {"type": "momentum", "lr": 0.05},
            },
        }
    )
    table = pa.table(dict(zip(names, inputs.T, strict=True)) | {"progression": progression})
    prepared = prepare_by_hand(tmp_path / "prepared", spec, table)
    plan = plan_of(spec, prepared)
    assert (plan.steps_per_epoch, plan.global_batch) == (1, prepared.num_rows("train"))
    learner = learner_of(spec, prepared)
    batch = batch_of(prepared, plan, 0)
    for _ in range(total_steps(spec, plan)):
        learner.learn(batch, flag=False)
    rows = [prepared.reader("train").read(np.arange(plan.num_rows))[name] for name in names]
    features = np.column_stack([*rows, np.ones(plan.num_rows)]).astype(np.float64)
    target = prepared.reader("train").read(np.arange(plan.num_rows))[TARGET].astype(np.float64)
    solution, *_ = np.linalg.lstsq(features, target, rcond=None)
    found = torch.cat([learner.parameters[0].reshape(-1), learner.parameters[1]]).detach().double().numpy()
    residual, least = (float(np.mean((features @ weights - target) ** 2)) for weights in (found, solution))
    assert residual == pytest.approx(least, rel=1e-4)
    assert np.abs(features @ (found - solution)).max() < 0.02


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, prepare_by_hand: Any) -> tuple[Spec, Prepared]:
    pixels, digit = load_digits(return_X_y=True)
    spec = Spec.model_validate(
        {
            "name": "digits",
            "data": {
                "source": {"path": "digits.parquet"},
                "inputs": {"pixels": {"type": "number", "length": 64}},
                "target": {"column": "digit", "type": "category"},
            },
            "model": {"type": "linear"},
            "train": {"epochs": 20, "global_batch": 64, "shards": 2, "optimizer": {"type": "adam", "lr": 0.01}},
        }
    )
    table = pa.table({"pixels": pixels.tolist(), "digit": digit})
    return spec, prepare_by_hand(tmp_path_factory.mktemp("digits") / "prepared", spec, table)


def test_logistic_regression_on_digits_is_as_good_as_scikit_learns(digits: tuple[Spec, Prepared]) -> None:
    spec, prepared = digits
    learner = learner_of(spec, prepared)
    train(learner, prepared)
    sets = [prepared.reader(split).read(np.arange(prepared.num_rows(split))) for split in ("train", "test")]  # type: ignore[arg-type]
    reference = LogisticRegression(max_iter=2000).fit(sets[0]["pixels"], sets[0][TARGET])
    expected = float((reference.predict(sets[1]["pixels"]) == sets[1][TARGET]).mean())
    with torch.inference_mode():
        logits = learner.model.eval()({"pixels": torch.from_numpy(sets[1]["pixels"])})
    accuracy = float((logits.argmax(1).numpy() == sets[1][TARGET]).mean())
    assert accuracy > 0.94
    assert accuracy == pytest.approx(expected, abs=0.02)


def test_the_ledger_holds_the_source_rows_of_each_shard_in_order(iris: Prepared, tmp_path: Path) -> None:
    learner = learner_of(spec_of(global_batch=2, shards=3, epochs=1), iris, ledger=str(tmp_path / "ledger"))
    train(learner, iris, until=2)
    (file,) = (tmp_path / "ledger").iterdir()
    lines = list(read_ledger(file))
    expected = [
        {"step": step, "shard": shard, "rows": arrays[ROW].tolist()}
        for step in range(2)
        for shard, arrays in batch_of(iris, learner.plan, step).items()
        if len(arrays[ROW])
    ]
    assert lines == expected


def read_ledger(file: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in file.read_text().splitlines())


def test_gradients_are_views_of_one_vector() -> None:
    layer = nn.Linear(3, 2)
    gradients = Gradients(list(layer.parameters()))
    assert gradients.flat.shape == (8 + EXTRAS,)
    layer(torch.ones(4, 3)).sum().backward()
    assert torch.equal(gradients.flat[:8], torch.cat([torch.full((6,), 4.0), torch.full((2,), 4.0)]))
    total = gradients.note(6.0, 4.0, True).clone()
    assert gradients.take(total) == (1.5, 4.0, True)
    assert torch.equal(layer.bias.grad, torch.ones(2))  # type: ignore[arg-type]
    gradients.clear()
    assert not layer.weight.grad.any()  # type: ignore[union-attr]
