"""The best epoch, and when to stop looking for a better one."""

from __future__ import annotations

import pytest

from tidegate.metrics import CLASSIFICATION, HIGHER_IS_BETTER, REGRESSION
from tidegate.spec.train import EarlyStop
from tidegate.training.early_stop import BestEpoch


def follow(metric: str, patience: int, values: list[float | None]) -> tuple[BestEpoch, int]:
    """The best epoch and the one after which training stopped."""
    best = BestEpoch(None, EarlyStop(metric=f"validation.{metric}", patience=patience))
    for epoch, value in enumerate(values, 1):
        best.improves(epoch, {} if value is None else {f"validation.{metric}": value})
        if best.gives_up(epoch):
            return best, epoch
    return best, len(values)


@pytest.mark.parametrize("metric", sorted({*CLASSIFICATION, *REGRESSION}))
def test_better_is_what_the_metric_says(metric: str) -> None:
    best, _ = follow(metric, 5, [0.5, 0.9, 0.1, 0.5])
    assert best.epoch == (2 if HIGHER_IS_BETTER[metric] else 3)
    assert best.value == (0.9 if HIGHER_IS_BETTER[metric] else 0.1)


@pytest.mark.parametrize(("patience", "stopped"), [(1, 3), (2, 4), (3, 7)])
def test_it_stops_after_so_many_epochs_without_improvement(patience: int, stopped: int) -> None:
    best, epoch = follow("loss", patience, [1.0, 0.5, 0.6, 0.7, 0.4, 0.5, 0.6])
    assert epoch == stopped
    assert best.epoch == (2 if patience < 3 else 5)


def test_an_equal_value_is_no_improvement() -> None:
    best, epoch = follow("accuracy", 2, [0.5, 0.5, 0.5, 0.9])
    assert (best.epoch, best.value, epoch) == (1, 0.5, 3)


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_an_epoch_without_a_value_is_no_improvement(nothing: float | None) -> None:
    best, epoch = follow("auroc", 2, [0.5, nothing, nothing, 0.9])
    assert (best.epoch, best.value, epoch) == (1, 0.5, 3)
    best, _ = follow("auroc", 3, [nothing, 0.2, 0.3])
    assert (best.epoch, best.value) == (3, 0.3)


def test_infinity_is_a_value_that_any_number_is_better_than() -> None:
    best, _ = follow("loss", 5, [float("inf"), 1e9, float("nan"), float("inf")])
    assert (best.epoch, best.value) == (2, 1e9)


def test_without_a_metric_every_epoch_is_the_best_and_it_never_stops() -> None:
    best = BestEpoch(None, None)
    assert all(best.improves(epoch, {"validation.loss": 0.5 + epoch}) for epoch in range(1, 50))
    assert (best.epoch, best.value) == (49, None)
    assert not any(best.gives_up(epoch) for epoch in range(1, 500))


def test_the_best_epoch_is_noted_without_a_rule_to_stop_by() -> None:
    best = BestEpoch("validation.accuracy", None)
    values = [0.5, 0.7, 0.6]
    assert [best.improves(epoch, {"validation.accuracy": value}) for epoch, value in enumerate(values, 1)] == [
        True,
        True,
        False,
    ]
    assert (best.epoch, best.value) == (2, 0.7)
    assert not best.gives_up(500)


def test_it_goes_on_from_a_stored_best_epoch() -> None:
    best = BestEpoch(None, EarlyStop(metric="validation.loss", patience=2))
    best.epoch, best.value = 3, 0.2
    assert not best.improves(4, {"validation.loss": 0.3})
    assert not best.gives_up(4)
    assert best.gives_up(5)
