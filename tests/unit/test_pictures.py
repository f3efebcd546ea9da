from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge

from tidegate import evaluation, pictures
from tidegate.evaluation import Report
from tidegate.scheduling.timeline import Sample

BLUE, ORANGE = (31, 90, 150), (200, 100, 30)
DARKEST = (8, 48, 107)
"""The colour of a cell that holds all rows of its class."""


def pixels(path: Path) -> np.ndarray:
    """[height, width, 3]"""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def share_of(path: Path, colour: tuple[int, int, int]) -> float:
    return float((np.abs(pixels(path) - colour).max(axis=2) <= 12).mean())


def classified(predicted: torch.Tensor, true: torch.Tensor, names: list[str]) -> Report:
    return evaluation.report("classification", torch.eye(len(names))[predicted], true, classes=names)


def perfect(num_classes: int) -> Report:
    every = torch.arange(num_classes)
    return classified(every, every, [f"class {number}" for number in range(num_classes)])


def test_confusion_matrix_of_digits(tmp_path: Path) -> None:
    inputs, digit = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=2000).fit(inputs[:1000] / 16, digit[:1000])
    logits = torch.tensor(model.decision_function(inputs[1000:] / 16))
    report = evaluation.report("classification", logits, torch.tensor(digit[1000:]), classes=list("0123456789"))
    pictures.confusion_matrix(report, tmp_path / "digits.png")
    height, width, _ = pixels(tmp_path / "digits.png").shape
    assert 600 < height < width < 1200


def test_the_colour_is_the_share_of_the_true_class(tmp_path: Path) -> None:
    true = torch.tensor([0, 0, 1, 1, 1, 1])
    pictures.confusion_matrix(classified(true, true, ["a", "b"]), tmp_path / "right.png")
    pictures.confusion_matrix(classified(torch.tensor([0, 1, 0, 0, 1, 1]), true, ["a", "b"]), tmp_path / "half.png")
    assert share_of(tmp_path / "right.png", DARKEST) > 0.2
    assert share_of(tmp_path / "half.png", DARKEST) < 0.02


@pytest.mark.parametrize("num_classes", [2, 20, 21, 100, 101, 250])
def test_confusion_matrix_of_many_classes(tmp_path: Path, num_classes: int) -> None:
    pictures.confusion_matrix(perfect(num_classes), tmp_path / "many.png")
    height, width, _ = pixels(tmp_path / "many.png").shape
    assert 400 < height < 2400
    assert 400 < width < 2400
    # The diagonal is dark, so the matrix was drawn whatever its size.
    assert share_of(tmp_path / "many.png", DARKEST) > 0.3 / num_classes


def test_counts_are_written_up_to_twenty_classes(tmp_path: Path) -> None:
    def cell(num_classes: int) -> np.ndarray:
        """The dark cell of the first class."""
        pictures.confusion_matrix(perfect(num_classes), tmp_path / "counts.png")
        image = pixels(tmp_path / "counts.png")
        rows, columns = np.nonzero(np.abs(image - DARKEST).max(axis=2) <= 12)
        left, size = columns.min(), round(0.42 * pictures.DPI * 0.8)
        top = rows[columns == left].min()
        return image[top + 4 : top + size, left + 4 : left + size]

    assert (cell(20).min(axis=2) > 200).any()
    assert not (cell(21).min(axis=2) > 200).any()


def test_class_names_are_no_formulas_and_may_hold_anything(tmp_path: Path) -> None:
    names = ["$a_{", "two\nlines", "\x1b[31m", "a name that is much too long for an axis of a small picture"]
    every = torch.arange(4)
    pictures.confusion_matrix(classified(every, every, names), tmp_path / "names.png")
    assert pixels(tmp_path / "names.png").shape[1] < 900


HISTORY = [
    {"epoch": 1, "train.loss": 2.0, "validation.loss": 1.5, "validation.accuracy": 0.5, "validation.auroc": 0.6},
    {"epoch": 2, "train.loss": 1.0, "validation.loss": 0.9, "validation.accuracy": 0.7},
    {"epoch": 3, "train.loss": 0.5, "validation.loss": 0.7, "validation.accuracy": 0.8, "validation.auroc": 0.9},
]


def only(*keys: str) -> list[dict[str, float]]:
    return [{key: entry[key] for key in ("epoch", *keys) if key in entry} for entry in HISTORY]


def test_learning_curve_draws_each_split(tmp_path: Path) -> None:
    pictures.learning_curve(only("train.loss", "validation.loss"), tmp_path / "both.png")
    pictures.learning_curve(only("train.loss"), tmp_path / "train.png")
    assert share_of(tmp_path / "both.png", BLUE) > 0
    assert share_of(tmp_path / "both.png", ORANGE) > 0
    assert share_of(tmp_path / "train.png", ORANGE) == 0


def test_learning_curve_has_a_panel_for_each_kind_of_metric(tmp_path: Path) -> None:
    def width(history: list[dict[str, float]]) -> int:
        pictures.learning_curve(history, tmp_path / "curve.png")
        return int(pixels(tmp_path / "curve.png").shape[1])

    regression = [
        entry | {"validation.mae": 3.0, "validation.mse": 1.5, "validation.r2": 0.1} for entry in only("train.loss")
    ]
    one, two, three = width(only("train.loss")), width(HISTORY), width(regression)
    assert one + 400 < two < three - 400


@pytest.mark.parametrize("epochs", [1, 2, 300])
def test_learning_curve_of_any_length(tmp_path: Path, epochs: int) -> None:
    history = [{"epoch": epoch + 1, "train.loss": 1 / (epoch + 1)} for epoch in range(epochs)]
    pictures.learning_curve(history, tmp_path / "curve.png")
    assert share_of(tmp_path / "curve.png", BLUE) > 0


def test_predicted_against_true_of_diabetes(tmp_path: Path) -> None:
    inputs, progression = load_diabetes(return_X_y=True)
    predicted = Ridge(alpha=0.1).fit(inputs[:300], progression[:300]).predict(inputs[300:])
    pictures.predicted_against_true(torch.tensor(predicted), torch.tensor(progression[300:]), tmp_path / "few.png")
    pictures.predicted_against_true(torch.tensor(predicted[:5]), torch.tensor(progression[300:305]), tmp_path / "5.png")
    bluish = (pixels(tmp_path / "few.png") - pixels(tmp_path / "few.png")[..., :1]).max(axis=2) > 30
    fewer = (pixels(tmp_path / "5.png") - pixels(tmp_path / "5.png")[..., :1]).max(axis=2) > 30
    assert bluish.sum() > 10 * fewer.sum() > 0


def test_predicted_against_true_of_many_rows_is_a_density(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(20_000, generator=generator)
    pictures.predicted_against_true(true + 0.3 * torch.randn(20_000, generator=generator), true, tmp_path / "many.png")
    assert share_of(tmp_path / "many.png", DARKEST) > 0


@pytest.mark.parametrize("rows", [1, 6000])
@pytest.mark.parametrize("value", [0.0, -7.0])
def test_predicted_against_true_of_constant_values(tmp_path: Path, rows: int, value: float) -> None:
    constant = torch.full((rows,), value)
    pictures.predicted_against_true(constant, constant, tmp_path / "constant.png")
    assert pixels(tmp_path / "constant.png").size


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: pictures.confusion_matrix(perfect(3), path),
        lambda path: pictures.learning_curve(HISTORY, path),
        lambda path: pictures.predicted_against_true(torch.arange(5.0), torch.ones(5), path),
    ],
)
def test_the_same_picture_every_time(tmp_path: Path, draw: Callable[[Path], None]) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_no_global_state_of_pyplot_and_no_display(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tidegate import pictures;"
        "assert 'matplotlib' not in sys.modules;"
        "pictures.learning_curve([{'epoch': 1, 'train.loss': 1.0}], Path(sys.argv[1]));"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "curve.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_devices_over_time_show_who_has_them(tmp_path: Path) -> None:
    def drawn(serving: float) -> Path:
        path = tmp_path / f"{serving}.png"
        timeline = [Sample(at, 4 - serving, serving, 0, 0, 0) for at in (100.0, 101.0, 102.0)]
        pictures.devices(timeline, "GPU", path)
        return path

    mostly, half = drawn(1), drawn(2)
    assert share_of(mostly, BLUE) > 2 * share_of(mostly, ORANGE) > 0
    assert share_of(half, BLUE) == pytest.approx(share_of(half, ORANGE), rel=0.1)
