from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from tidegate import evaluation
from tidegate.errors import DataError, TrainingError
from tidegate.metrics import CLASSIFICATION, REGRESSION

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Logits [797, 10] of a logistic regression on held-out digits, and their true classes."""
    pixels, digit = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=2000).fit(pixels[:1000] / 16, digit[:1000])
    logits = torch.tensor(model.decision_function(pixels[1000:] / 16), dtype=torch.float32)
    return logits, torch.tensor(digit[1000:])


@pytest.fixture(scope="module")
def diabetes() -> tuple[Tensor, Tensor]:
    inputs, progression = load_diabetes(return_X_y=True)
    model = Ridge(alpha=0.1).fit(inputs[:300], progression[:300])
    predicted = torch.tensor(model.predict(inputs[300:]), dtype=torch.float32)
    return predicted, torch.tensor(progression[300:], dtype=torch.float32)


def probabilities(logits: Tensor) -> np.ndarray:
    return logits.double().softmax(dim=1).numpy()


def reference(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """scikit-learn's values of all metrics but AUROC."""
    true, predicted = targets.numpy(), logits.argmax(dim=1).numpy()
    precision, recall, f1, _ = sk.precision_recall_fscore_support(true, predicted, average="macro", zero_division=0)
    labels = list(range(logits.shape[1]))
    return {
        "accuracy": sk.accuracy_score(true, predicted),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "loss": sk.log_loss(true, probabilities(logits), labels=labels),
    }


def test_digits_agree_with_scikit_learn(digits: tuple[Tensor, Tensor]) -> None:
    logits, targets = digits
    expected = reference(logits, targets)
    expected["auroc"] = sk.roc_auc_score(targets, probabilities(logits), multi_class="ovr")
    assert expected["accuracy"] > 0.9
    assert evaluation.compute("classification", logits, targets, CLASSIFICATION) == pytest.approx(expected, abs=1e-6)


def test_two_classes_agree_with_scikit_learn(digits: tuple[Tensor, Tensor]) -> None:
    logits, targets = digits
    pair = torch.stack([logits[:, 0::2].logsumexp(1), logits[:, 1::2].logsumexp(1)], dim=1)
    odd = targets % 2
    expected = reference(pair, odd)
    expected["auroc"] = sk.roc_auc_score(odd, probabilities(pair)[:, 1])
    assert evaluation.compute("classification", pair, odd, CLASSIFICATION) == pytest.approx(expected, abs=1e-6)


def test_diabetes_agrees_with_scikit_learn(diabetes: tuple[Tensor, Tensor]) -> None:
    predicted, true = diabetes
    expected = {
        "mse": sk.mean_squared_error(true, predicted),
        "mae": sk.mean_absolute_error(true, predicted),
        "r2": sk.r2_score(true, predicted),
        "loss": sk.mean_squared_error(true, predicted),
    }
    assert evaluation.compute("regression", predicted, true, REGRESSION) == pytest.approx(expected, rel=1e-6)


@st.composite
def classified(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits [rows, classes] with ties, and targets that may leave classes out."""
    rows, num_classes = draw(st.integers(1, 30)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randint(-3, 4, (rows, num_classes), generator=generator).float()
    return logits, torch.randint(0, draw(st.integers(1, num_classes)), (rows,), generator=generator)


@settings(deadline=None, max_examples=60)
@given(classified())
def test_any_rows_agree_with_scikit_learn(case: tuple[Tensor, Tensor]) -> None:
    logits, targets = case
    found = evaluation.compute("classification", logits, targets, CLASSIFICATION)
    areas = [
        sk.roc_auc_score(targets == number, probabilities(logits)[:, number])
        for number in targets.unique().tolist()
        if not bool((targets == number).all())
    ]
    assert ("auroc" in found) == bool(areas)
    if areas:
        assert found.pop("auroc") == pytest.approx(np.mean(areas), abs=1e-6)
    assert found == pytest.approx(reference(logits, targets), abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(classified())
def test_report_is_consistent(case: tuple[Tensor, Tensor]) -> None:
    logits, targets = case
    names = [f"c{number}" for number in range(logits.shape[1])]
    report = evaluation.report("classification", logits, targets, classes=names)
    confusion = np.array(report.confusion)
    assert (confusion == sk.confusion_matrix(targets, logits.argmax(1), labels=range(len(names)))).all()
    assert confusion.sum(axis=1).tolist() == [item.rows for item in report.per_class]
    assert np.trace(confusion) / report.rows == pytest.approx(report.metrics["accuracy"])
    assert evaluation.Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


def test_report_per_class(digits: tuple[Tensor, Tensor]) -> None:
    logits, targets = digits
    report = evaluation.report("classification", logits, targets, classes=DIGITS)
    precision, recall, f1, rows = sk.precision_recall_fscore_support(targets, logits.argmax(1))
    assert [item.name for item in report.per_class] == DIGITS
    assert [item.rows for item in report.per_class] == rows.tolist()
    assert [item.precision for item in report.per_class] == pytest.approx(precision, abs=1e-6)
    assert [item.recall for item in report.per_class] == pytest.approx(recall, abs=1e-6)
    assert [item.f1 for item in report.per_class] == pytest.approx(f1, abs=1e-6)
    assert tuple(report.metrics) == CLASSIFICATION
    assert report.metrics == evaluation.compute("classification", logits, targets, CLASSIFICATION)


def test_report_of_a_regression(diabetes: tuple[Tensor, Tensor]) -> None:
    report = evaluation.report("regression", *diabetes)
    assert (report.rows, report.classes, report.per_class, report.confusion) == (142, (), [], None)
    assert tuple(report.metrics) == REGRESSION
    assert evaluation.Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_only_wanted_metrics_in_the_order_asked(digits: tuple[Tensor, Tensor]) -> None:
    assert list(evaluation.compute("classification", *digits, ["loss", "accuracy"])) == ["loss", "accuracy"]


def test_confident_rows_do_not_tie() -> None:
    # In single precision both probabilities of class 1 would be exactly 1 and the area 0.5.
    logits = torch.tensor([[0.0, 20.0], [0.0, 25.0]])
    assert evaluation.compute("classification", logits, torch.tensor([0, 1]), ["auroc"]) == {"auroc": 1.0}


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_r2_does_not_depend_on_the_unit(diabetes: tuple[Tensor, Tensor], unit: float) -> None:
    predicted, true = diabetes
    expected = sk.r2_score(true, predicted)
    found = evaluation.compute("regression", predicted * unit, true * unit, ["r2"])
    assert found["r2"] == pytest.approx(expected, abs=1e-5)


def test_r2_is_missing_when_targets_do_not_vary() -> None:
    found = evaluation.compute("regression", torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0]), REGRESSION)
    assert found == {"mse": 2.5, "mae": 1.5, "loss": 2.5}
    assert "r2" not in evaluation.compute("regression", torch.tensor([1.0]), torch.tensor([3.0]), REGRESSION)


def test_auroc_is_missing_for_a_lone_class() -> None:
    report = evaluation.report("classification", torch.eye(3), torch.tensor([1, 1, 1]), classes=["a", "b", "c"])
    assert "auroc" not in report.metrics
    assert not any(math.isnan(value) for value in report.metrics.values())


def test_same_result_every_time(digits: tuple[Tensor, Tensor]) -> None:
    first, second = (evaluation.report("classification", *digits, classes=DIGITS) for _ in range(2))
    assert first == second


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows to evaluate"):
        evaluation.compute("classification", torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), ["loss"])


def test_diverged_outputs_are_refused() -> None:
    outputs = torch.tensor([1.0, float("nan"), float("inf")])
    with pytest.raises(TrainingError, match="2 of the 3 model outputs are not finite"):
        evaluation.report("regression", outputs, torch.ones(3))


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "message"),
    [
        ("regression", torch.zeros(3, 1), torch.zeros(3), "do not fit"),
        ("regression", torch.zeros(2), torch.zeros(3), "do not fit"),
        ("classification", torch.zeros(3), torch.tensor([0, 1, 0]), "do not fit"),
        ("classification", torch.zeros(2, 2), torch.tensor([0, 2]), "outside the 2 classes"),
        ("classification", torch.zeros(2, 2), torch.tensor([0, -1]), "outside the 2 classes"),
    ],
)
def test_shapes_and_classes_are_checked(task: Any, outputs: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation.compute(task, outputs, targets, ["loss"])


def test_unknown_metric_and_wrong_class_names_are_refused() -> None:
    with pytest.raises(ValueError, match="regression has no metric 'accuracy'"):
        evaluation.compute("regression", torch.zeros(1), torch.zeros(1), ["accuracy"])
    with pytest.raises(ValueError, match="1 class names for 3 columns"):
        evaluation.report("classification", torch.eye(3), torch.arange(3), classes=["a"])


@dataclass(frozen=True)
class Limits:
    at_least: float | None = None
    at_most: float | None = None


@pytest.mark.parametrize(
    ("limits", "value", "sentence"),
    [
        (Limits(at_least=0.98), 0.9611, "test.x is 0.9611, required at least 0.9800"),
        (Limits(at_least=0.98), 0.979998, "test.x is 0.979998, required at least 0.980000"),
        (Limits(at_most=0.5), 0.75, "test.x is 0.7500, required at most 0.5000"),
        (Limits(at_least=0.9), None, "test.x was not measured, required at least 0.9000"),
        (Limits(at_most=0.9), None, "test.x was not measured, required at most 0.9000"),
        (Limits(at_least=0.9), math.nan, "test.x is nan, required at least 0.9000"),
    ],
)
def test_missed_requirement(limits: Limits, value: float | None, sentence: str) -> None:
    metrics = {} if value is None else {"test.x": value}
    assert evaluation.check({"test.x": limits}, metrics) == [sentence]


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(-10, 10))
def test_a_requirement_is_met_between_its_bounds_inclusive(low: float, high: float, value: float) -> None:
    missed = evaluation.check({"test.x": Limits(low, high)}, {"test.x": value})
    assert (missed == []) == (low <= value <= high)
    assert evaluation.check({"test.x": Limits(value, value)}, {"test.x": value}) == []


def test_every_missed_requirement_is_named() -> None:
    require = {"test.accuracy": Limits(at_least=0.9), "test.f1": Limits(at_least=0.1), "validation.loss": Limits(0, 1)}
    metrics = {"test.accuracy": 0.5, "test.f1": 0.5, "validation.loss": 2.0}
    assert [sentence.split()[0] for sentence in evaluation.check(require, metrics)] == [
        "test.accuracy",
        "validation.loss",
    ]


def test_several_numbers_a_row_count_each() -> None:
    outputs, targets = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    found = evaluation.report("regression", outputs, targets)
    assert found.rows == 2
    assert found.metrics == evaluation.report("regression", outputs.flatten(), targets.flatten()).metrics
    assert found.metrics["mae"] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="do not fit"):
        evaluation.report("regression", outputs, targets[:, 0])
