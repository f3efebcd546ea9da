from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import metrics


def test_names_need_neither_torch_nor_ray() -> None:
    code = "import sys, tidegate.metrics; print(sorted({'torch', 'ray', 'numpy', 'torchmetrics'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_metric_has_a_direction() -> None:
    assert set(metrics.HIGHER_IS_BETTER) == {*metrics.CLASSIFICATION, *metrics.REGRESSION, *metrics.SEQUENCE}
    assert {name for name, higher in metrics.HIGHER_IS_BETTER.items() if not higher} == {
        "mse",
        "mae",
        "wer",
        "cer",
        "ser",
        "loss",
    }


def test_names_of_a_task() -> None:
    assert metrics.of_task("classification") == ("accuracy", "precision", "recall", "f1", "auroc", "loss")
    assert metrics.of_task("regression") == ("mse", "mae", "r2", "loss")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.9611, "0.9611"),
        (1.0, "1.0000"),
        (0.0, "0.0000"),
        (-0.25, "-0.2500"),
        (41.4752, "41.475"),
        (2783.94, "2783.9"),
        (29074.4, "29074.4"),
        (1.2e-6, "1.2e-06"),
        (3.21e9, "3.21e+09"),
        (float("nan"), "nan"),
    ],
)
def test_text(value: float, expected: str) -> None:
    assert metrics.text(value) == expected


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
def test_texts_tell_different_numbers_apart(value: float, bound: float) -> None:
    found, needed = metrics.texts_apart(value, bound)
    assert (found != needed) == (value != bound) or value == bound == 0
    assert float(found) == pytest.approx(value, rel=1e-2, abs=1e-3)
