"""Speeds and seconds of a worker, on a clock that the test moves."""

from __future__ import annotations

import math

import pytest

from tidegate.training import pace
from tidegate.training.pace import TOLD_EVERY_S, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def test_speeds_begin_at_the_end_of_the_first_step(clock: Clock) -> None:
    found = Pace()
    found.begin()
    clock.now += 30
    found.step(64)
    assert found.speeds() == (0, 0)
    clock.now += 2
    found.step(64)
    found.step(64)
    assert found.speeds() == (64, 64)
    clock.now += 2
    found.step(64)
    assert found.speeds() == (32, 48)


def test_it_is_due_at_the_first_step_and_then_every_so_often(clock: Clock) -> None:
    found = Pace()
    found.begin()
    assert found.is_due()
    found.step(1)
    found.speeds()
    assert not found.is_due()
    clock.now += TOLD_EVERY_S * 0.9
    assert not found.is_due()
    clock.now += TOLD_EVERY_S * 0.2
    assert found.is_due()
    found.speeds()
    assert not found.is_due()


def test_the_speed_of_an_epoch_counts_from_the_epoch_before(clock: Clock) -> None:
    found = Pace()
    found.begin()
    for rows, seconds, speed in ((100, 4, 25), (100, 2, 50)):
        for _ in range(2):
            clock.now += seconds / 2
            found.step(rows // 2)
        found.speeds()
        assert found.epoch_speed() == speed


def test_validation_does_not_slow_the_steps_but_takes_its_time(clock: Clock) -> None:
    found = Pace()
    found.begin()
    found.step(64)
    found.speeds()
    clock.now += 2
    found.step(128)
    with found.validating():
        clock.now += 6
    assert found.speeds() == (64, 16)


def test_waiting_for_checkpoints_is_no_training(clock: Clock) -> None:
    found = Pace()
    clock.now += 50
    found.begin()
    assert found.saved_at == clock.now
    clock.now += 10
    for _ in range(2):
        with found.checkpointing():
            clock.now += 1.5
    clock.now += 4
    assert found.checkpointing_s == 3
    assert found.training_s == 14


def test_there_is_no_loss_before_the_first_step() -> None:
    assert math.isnan(Pace().loss)
