"""What a step does to a model, on real data and one worker: against torch, least squares and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from tidegate.training.checkpoint import Checkpoints
from tidegate.training.job import plan_of, total_steps
from tidegate.training.learner import Learner, MakeOptimizer, shard_seed
from tidegate.transforms.base import Feature

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


def learner_of(
    spec: Spec, prepared: Prepared, *, model: nn.Module | None = None, make: MakeOptimizer | None = None
) -> Learner:
    module = model or build(spec.model, prepared.features, prepared.target.feature, seed=spec.seed)
    return Learner(spec, plan_of(spec, prepared), module, make, worker=0, workers=1, device=torch.device("cpu"))


def batch_of(prepared: Prepared, plan: Plan, step: int) -> dict[int, dict[str, Any]]:
    reader = prepared.reader("train")
    return {shard: reader.read(plan.shard_rows(step, shard)) for shard in range(plan.shards)}


def learn(learner: Learner, batch: Mapping[int, Mapping[str, Any]], flag: int = 0) -> tuple[float, int]:
    """One step. The mean loss and the flag."""
    for shard, arrays in batch.items():
        learner.begin(shard)
        if rows := len(arrays[ROW]):
            inputs = {name: torch.from_numpy(array) for name, array in arrays.items() if name not in (ROW, TARGET)}
            learner.backward(loss_of(learner, inputs, torch.from_numpy(arrays[TARGET])), float(rows), rows)
        learner.end()
    return learner.finish(flag)


def loss_of(learner: Learner, inputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    outputs = learner.model(inputs)
    if learner.spec.task == "regression":
        return functional.mse_loss(outputs.reshape(-1), targets)
    return functional.cross_entropy(outputs, targets)


def train(learner: Learner, prepared: Prepared, until: int | None = None) -> list[float]:
    """The loss of each step."""
    stop = learner.total_steps if until is None else until
    return [learn(learner, batch_of(prepared, learner.plan, step))[0] for step in range(learner.step, stop)]


def saved(learner: Learner, folder: Path, *, finished: bool = False) -> Checkpoints:
    checkpoints = Checkpoints(str(folder))
    checkpoints.write(learner.checkpoint(finished=finished, extra={"identity": "a hash"}))
    return checkpoints


def restored(learner: Learner, checkpoints: Checkpoints) -> Learner:
    found = checkpoints.latest("a hash")
    assert found is not None
    learner.restore(found)
    return learner


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
    weights = build(spec.model, prepared.features, Feature("y", "category", (), 3), seed=spec.seed).state_dict()
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
        loss, _ = learn(learner, batch_of(iris, learner.plan, step))
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
        learn(learner, batch_of(iris, learner.plan, step))
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
    learn(learner, batch_of(iris, learner.plan, 0))
    inputs, targets = whole(iris, learner.plan, 0)
    functional.cross_entropy(plain(inputs), targets).backward()
    norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in plain.parameters()))  # type: ignore[union-attr]
    assert norm > 0.05
    for mine, theirs in zip(learner.gradients.parameters, plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad * min(1.0, bound / norm), rtol=0, atol=1e-6)  # type: ignore[arg-type,operator]
    clipped = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in learner.gradients.parameters))  # type: ignore[union-attr]
    assert clipped == pytest.approx(min(bound, norm), rel=1e-4)


def test_a_batch_smaller_than_its_shards_is_the_same_step(iris: Prepared) -> None:
    few, one = (learner_of(spec_of(global_batch=2, shards=shards, epochs=1), iris) for shards in (5, 1))
    batch = batch_of(iris, few.plan, 0)
    assert [len(arrays[ROW]) for arrays in batch.values()].count(0) == 3
    for step in range(10):
        losses = [learn(learner, batch_of(iris, learner.plan, step))[0] for learner in (few, one)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert (
        max(
            float((a - b).abs().max().detach())
            for a, b in zip(few.gradients.parameters, one.gradients.parameters, strict=True)
        )
        < 1e-6
    )


def test_a_last_batch_of_fewer_rows_weighs_each_row_alike(iris: Prepared) -> None:
    spec = spec_of(global_batch=50, shards=4, epochs=1)
    learner, plain = learner_of(spec, iris), twin(spec, iris)
    assert learner.plan.batch_rows(learner.total_steps - 1) == 20
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(learner.total_steps):
        learn(learner, batch_of(iris, learner.plan, step))
        inputs, targets = whole(iris, learner.plan, step)
        optimizer.zero_grad()
        functional.cross_entropy(plain(inputs), targets).backward()
        optimizer.step()
    assert gap(learner, plain) < 1e-6


@pytest.mark.parametrize("flag", [0, 1, 3])
def test_the_flag_travels_even_with_shards_that_are_empty(iris: Prepared, flag: int) -> None:
    learner = learner_of(spec_of(global_batch=2, shards=5), iris)
    assert learn(learner, batch_of(iris, learner.plan, 0), flag)[1] == flag
    assert learn(learner, batch_of(iris, learner.plan, 1))[1] == 0


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
    train(learner, iris, until=4)
    learner.history.append({"epoch": 1, "train.loss": learner.take_epoch_loss()})
    train(learner, iris, until=middle)
    checkpoints = saved(learner, tmp_path)
    torch.manual_seed(123)
    resumed = restored(learner_of(spec, iris), checkpoints)
    assert resumed.step == middle
    assert train(learner, iris) == train(resumed, iris)
    assert resumed.take_epoch_loss() == learner.take_epoch_loss()
    assert resumed.history == learner.history
    assert_equal(learner, resumed)
    assert (optimizer["type"] == "sgd") == (not learner.checkpoint(finished=True, extra={}).tensors["optimizer"])


def assert_equal(one: Learner, two: Learner) -> None:
    """All that a checkpoint would hold, bit for bit."""
    first, second = (learner.checkpoint(finished=True, extra={}) for learner in (one, two))
    assert first.step == second.step
    assert first.state == second.state
    assert first.tensors.keys() == second.tensors.keys()
    for part, tensors in first.tensors.items():
        assert tensors.keys() == second.tensors[part].keys()
        assert all(torch.equal(tensor, second.tensors[part][name]) for name, tensor in tensors.items())


class Normalised(nn.Module):
    """A person's module with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = self.layers(inputs["measures"])
        return output


OWN = {
    "two groups": lambda p: torch.optim.AdamW([{"params": p[:2]}, {"params": p[2:], "lr": 0.1}], lr=0.01, amsgrad=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


@pytest.mark.parametrize("name", OWN)
def test_an_own_model_and_optimizer_resume_with_the_same_bits(iris: Prepared, tmp_path: Path, name: str) -> None:
    spec = spec_of(global_batch=30, shards=2, schedule={"type": "linear", "warmup_fraction": 0.2})
    learner = learner_of(spec, iris, model=Normalised(), make=OWN[name])
    train(learner, iris, until=5)
    resumed = restored(learner_of(spec, iris, model=Normalised(), make=OWN[name]), saved(learner, tmp_path))
    assert train(learner, iris) == train(resumed, iris)
    assert_equal(learner, resumed)
    assert int(resumed.model.layers[1].num_batches_tracked) == resumed.total_steps  # type: ignore[union-attr,index,arg-type]


def test_the_rates_of_an_own_optimizer_are_multiplied_by_the_schedule(iris: Prepared) -> None:
    spec = spec_of(schedule={"type": "linear", "warmup_fraction": 0.25}, epochs=2)
    learner = learner_of(spec, iris, model=Normalised(), make=OWN["two groups"])
    assert learner.total_steps == 8
    rates = []
    for step in range(8):
        learn(learner, batch_of(iris, learner.plan, step))
        rates.append([group["lr"] for group in learner.optimizer.param_groups])
    factors = [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert rates == [[pytest.approx(0.01 * factor), pytest.approx(0.1 * factor)] for factor in factors]


def test_weights_that_are_not_the_models_are_refused_in_an_optimizer(iris: Prepared) -> None:
    other, frozen = nn.Linear(3, 5), nn.Linear(3, 5).requires_grad_(False)
    with pytest.raises(TrainingError, match=r"not the model's, of shape \[5, 3\], \[5\]"):
        learner_of(spec_of(), iris, make=lambda p: torch.optim.SGD([*p, *other.parameters()], 0.1))
    learner_of(spec_of(), iris, make=lambda p: torch.optim.SGD([*p, *frozen.parameters()], 0.1))


@pytest.mark.parametrize(
    "model", [{"type": "mlp", "hidden": [17]}, {"type": "mlp", "hidden": [16, 16]}, {"type": "linear"}]
)
def test_a_checkpoint_of_another_model_is_refused(iris: Prepared, tmp_path: Path, model: dict[str, Any]) -> None:
    learner = learner_of(spec_of(), iris)
    train(learner, iris, until=2)
    checkpoints = saved(learner, tmp_path)
    with pytest.raises(TrainingError, match="the checkpoint of step 2 does not fit the model: ") as caught:
        restored(learner_of(spec_of(model=model), iris), checkpoints)
    assert "layers.0.weight" in caught.value.happened or "layer" in caught.value.happened
    assert "name" in caught.value.remedy


def test_the_fast_reduction_refuses_running_statistics(iris: Prepared) -> None:
    with pytest.raises(TrainingError, match="BatchNorm") as caught:
        learner_of(spec_of(reduction="fast"), iris, model=Normalised())
    assert "ordered" in caught.value.remedy


@pytest.mark.parametrize("options", [{"type": "sgd", "lr": 0.1}, {"type": "adam", "lr": 0.01}], ids=["sgd", "adam"])
def test_one_shard_has_the_bits_of_a_plain_loop(iris: Prepared, options: dict[str, Any]) -> None:
    # Eight rows a batch: times and by a power of two is exact.
    spec = spec_of(optimizer=options, shards=1, global_batch=8, epochs=3)
    learner, plain = learner_of(spec, iris), twin(spec, iris)
    kind = torch.optim.SGD if options["type"] == "sgd" else torch.optim.Adam
    optimizer = kind(plain.parameters(), lr=options["lr"], fused=True)
    for step in range(learner.total_steps):
        assert learner.plan.batch_rows(step) == 8
        loss, _ = learn(learner, batch_of(iris, learner.plan, step))
        inputs, targets = whole(iris, learner.plan, step)
        expected = functional.cross_entropy(plain(inputs), targets)
        optimizer.zero_grad()
        expected.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert loss == float(expected.detach())
        assert gap(learner, plain) == 0


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
    spec = spec_of(checkpoint={"best": "validation.accuracy"})
    learner = learner_of(spec, iris)
    train(learner, iris, until=3)
    assert learner.best.improves(1, {"validation.accuracy": 0.5})
    learner.keep_best()
    kept = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    train(learner, iris, until=6)
    resumed = restored(learner_of(spec, iris), saved(learner, tmp_path))
    assert all(torch.equal(resumed.best_weights[name], tensor) for name, tensor in kept.items())
    assert not torch.equal(resumed.model.state_dict()["layers.0.weight"], kept["layers.0.weight"])
    assert (resumed.best.epoch, resumed.best.value) == (1, 0.5)
    assert not resumed.best.improves(2, {"validation.accuracy": 0.5})


def test_the_loss_of_an_epoch_is_the_mean_over_its_rows(iris: Prepared) -> None:
    learner = learner_of(spec_of(global_batch=50, shards=4), iris)
    losses = train(learner, iris, until=3)
    assert [learner.plan.batch_rows(step) for step in range(3)] == [50, 50, 20]
    assert learner.take_epoch_loss() == pytest.approx(np.average(losses, weights=[50, 50, 20]))
    losses = train(learner, iris, until=4)
    assert learner.take_epoch_loss() == pytest.approx(losses[0])


def test_a_loss_that_is_not_finite_is_an_error_with_a_remedy(iris: Prepared) -> None:
    learner = learner_of(spec_of(optimizer={"type": "sgd", "lr": 1000.0}, epochs=40), iris)
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step \d+") as caught:
        train(learner, iris)
    assert "train.optimizer.lr" in caught.value.remedy
    assert "clip_norm" in caught.value.remedy


def test_weights_that_the_last_step_broke_are_no_final_checkpoint(iris: Prepared) -> None:
    learner = learner_of(spec_of(), iris)
    learner.checkpoint(finished=True, extra={})
    with torch.no_grad():
        learner.gradients.parameters[0].view(-1)[0] = float("inf")
    learner.checkpoint(finished=False, extra={})
    with pytest.raises(TrainingError, match="after the last step, in") as caught:
        learner.checkpoint(finished=True, extra={})
    assert "lr" in str(caught.value.remedy)


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
        learn(learner, batch)
    rows = [prepared.reader("train").read(np.arange(plan.num_rows))[name] for name in names]
    features = np.column_stack([*rows, np.ones(plan.num_rows)]).astype(np.float64)
    target = prepared.reader("train").read(np.arange(plan.num_rows))[TARGET].astype(np.float64)
    solution, *_ = np.linalg.lstsq(features, target, rcond=None)
    found = (
        torch.cat([learner.gradients.parameters[0].reshape(-1), learner.gradients.parameters[1]])
        .detach()
        .double()
        .numpy()
    )
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
            "train": {"epochs": 12, "global_batch": 64, "shards": 2, "optimizer": {"type": "adam", "lr": 0.01}},
        }
    )
    table = pa.table({"pixels": pixels.tolist(), "digit": digit})
    return spec, prepare_by_hand(tmp_path_factory.mktemp("digits") / "prepared", spec, table)


def test_logistic_regression_on_digits_is_as_good_as_scikit_learns(digits: tuple[Spec, Prepared]) -> None:
    spec, prepared = digits
    learner = learner_of(spec, prepared)
    train(learner, prepared)
    sets = [prepared.reader(split).read(np.arange(prepared.num_rows(split))) for split in ("train", "test")]  # type: ignore[arg-type]
    reference = LogisticRegression(max_iter=300).fit(sets[0]["pixels"], sets[0][TARGET])
    expected = float((reference.predict(sets[1]["pixels"]) == sets[1][TARGET]).mean())
    with torch.inference_mode():
        logits = learner.model.eval()({"pixels": torch.from_numpy(sets[1]["pixels"])})
    accuracy = float((logits.argmax(1).numpy() == sets[1][TARGET]).mean())
    assert accuracy > 0.94
    assert accuracy == pytest.approx(expected, abs=0.02)
