"""What training minimises: against torch's losses and scikit-learn's class weights, on real data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional

from tidegate.data.prepared import TARGET, Prepared
from tidegate.errors import SpecError
from tidegate.models.code import Code
from tidegate.spec.run import Spec
from tidegate.training.objective import class_counts, class_weights, objective

CPU = torch.device("cpu")
WINE = {
    "name": "wine",
    "data": {
        "source": {"path": "wine.parquet"},
        "inputs": {"measures": {"type": "number", "length": 13}},
        "target": {"column": "cultivar", "type": "category"},
        "split": {"train": 0.8, "validation": 0.1, "test": 0.1},
    },
    "model": {"type": "linear"},
}


def spec_of(*, model: dict[str, Any] | None = None, **train: Any) -> Spec:
    return Spec.model_validate(WINE | {"model": model or WINE["model"], "train": train})


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory, prepare_by_hand: Any) -> Prepared:
    measures, cultivar = load_wine(return_X_y=True)
    table = pa.table({"measures": measures.tolist(), "cultivar": np.asarray(["a", "b", "c"])[cultivar]})
    prepared = prepare_by_hand(tmp_path_factory.mktemp("wine") / "prepared", spec_of(), table)
    assert isinstance(prepared, Prepared)
    return prepared


def targets_of(prepared: Prepared) -> Any:
    return prepared.reader("train").read(np.arange(prepared.num_rows("train")))[TARGET]


def test_balanced_weights_are_those_of_scikit_learn(wine: Prepared) -> None:
    targets = targets_of(wine)
    assert class_counts(wine) == [Counter(targets.tolist())[code] for code in range(3)]
    assert len(set(class_counts(wine))) == 3
    weights = class_weights(spec_of(class_weights="balanced"), wine, CPU)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert weights is not None
    assert weights.dtype == torch.float32
    assert torch.allclose(weights, torch.from_numpy(expected).float())


def test_written_weights_go_by_the_names_of_the_classes(wine: Prepared) -> None:
    weights = class_weights(spec_of(class_weights={"c": 3.0, "a": 1.0, "b": 0.5}), wine, CPU)
    assert weights is not None
    assert weights.tolist() == [1.0, 0.5, 3.0]
    assert class_weights(spec_of(), wine, CPU) is None


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "d"], ["a", "b", "c", "d"]])
def test_every_class_needs_a_weight_and_no_other(wine: Prepared, names: list[str]) -> None:
    with pytest.raises(SpecError, match=f"train.class_weights names {', '.join(names)}") as caught:
        class_weights(spec_of(class_weights=dict.fromkeys(names, 1.0)), wine, CPU)
    assert "a, b, c" in caught.value.expected


def batch(rows: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 3, generator=generator), torch.randint(0, 3, (rows,), generator=generator)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.25, 3.0])])
def test_classes_are_trained_by_cross_entropy(weights: Tensor | None) -> None:
    outputs, targets = batch()
    loss, weight = objective(spec_of(), Code({}), weights)(outputs, targets)
    assert torch.equal(loss, functional.cross_entropy(outputs, targets, weight=weights))
    assert weight == (12.0 if weights is None else pytest.approx(float(weights[targets].sum())))


def test_parts_of_a_weighted_batch_add_up_to_the_whole() -> None:
    outputs, targets = batch()
    loss_of = objective(spec_of(), Code({}), torch.tensor([1.0, 0.25, 3.0]))
    whole, weight = loss_of(outputs, targets)
    parts = [loss_of(outputs[rows], targets[rows]) for rows in (slice(0, 3), slice(3, 4), slice(4, 12))]
    assert sum(part for _, part in parts) == pytest.approx(weight)
    assert float(sum(float(loss) * part for loss, part in parts) / weight) == pytest.approx(float(whole), abs=1e-6)


REGRESSION = WINE | {
    "data": WINE["data"] | {"target": {"column": "progression", "type": "number"}},  # type: ignore[operator]
}


@pytest.mark.parametrize("shape", [(6, 1), (6,)])
def test_numbers_are_trained_by_squared_error(shape: tuple[int, ...]) -> None:
    _, progression = load_diabetes(return_X_y=True)
    outputs, targets = torch.linspace(100, 200, 6), torch.from_numpy(progression[:6]).float()
    loss, weight = objective(Spec.model_validate(REGRESSION), Code({}), None)(outputs.reshape(shape), targets)
    assert float(loss) == pytest.approx(float(np.mean((outputs.numpy() - progression[:6]) ** 2)), rel=1e-6)
    assert weight == 6.0


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_half_precision_outputs_are_compared_in_full(task: str) -> None:
    spec = Spec.model_validate(WINE if task == "classification" else REGRESSION)
    outputs, classes = batch()
    targets = classes if task == "classification" else classes.float()
    outputs = outputs if task == "classification" else outputs[:, :1]
    loss, _ = objective(spec, Code({}), None)(outputs.bfloat16(), targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, objective(spec, Code({}), None)(outputs.bfloat16().float(), targets)[0])


def test_an_own_loss_is_the_mean_over_the_rows(tmp_path: Path) -> None:
    code = Code(
        {
            "losses.py": "from torch.nn import functional\n\n\ndef own(outputs, targets):\n"
            "    return functional.cross_entropy(outputs, targets, label_smoothing=0.2)\n"
        }
    )
    spec = spec_of(model={"type": "custom", "build": "torch.nn:Linear", "loss": "losses:own"})
    outputs, targets = batch()
    loss, weight = objective(spec, code, None)(outputs, targets)
    assert torch.equal(loss, functional.cross_entropy(outputs, targets, label_smoothing=0.2))
    assert weight == 12.0
