"""The learning rate of each step, and which of torch's optimizers a spec means."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tidegate.spec.train import Optimizer, Schedule
from tidegate.training.optimizer import build_optimizer, rate_factor, set_rate

schedules = st.builds(
    Schedule, type=st.sampled_from(["constant", "cosine", "linear"]), warmup_fraction=st.floats(0, 0.99)
)


@given(schedules, st.integers(1, 500))
def test_factors_rise_while_warming_up_and_never_after(schedule: Schedule, total: int) -> None:
    factors = [rate_factor(schedule, step, total) for step in range(total)]
    warmup = math.ceil(schedule.warmup_fraction * total)
    assert all(0 <= factor <= 1 for factor in factors)
    # A rate of zero would waste the step.
    assert all(factor > 0 for factor in factors)
    assert all(a < b for a, b in pairwise(factors[:warmup]))
    assert all(a >= b for a, b in pairwise(factors[warmup:]))
    assert max(factors) == pytest.approx(1)


def test_factors_by_hand() -> None:
    def factors(kind: str, warmup: float) -> list[float]:
        schedule = Schedule(type=kind, warmup_fraction=warmup)  # type: ignore[arg-type]
        return [rate_factor(schedule, step, 8) for step in range(8)]

    assert factors("constant", 0) == [1] * 8
    assert factors("constant", 0.5) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert factors("linear", 0.5) == [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]
    assert factors("linear", 0) == [1 - step / 8 for step in range(8)]
    assert factors("cosine", 0)[::4] == pytest.approx([1, 0.5])
    assert factors("cosine", 0.5)[4:] == pytest.approx([1, 0.8535534, 0.5, 0.1464466])


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({"type": "sgd"}, torch.optim.SGD, {"momentum": 0}),
        ({"type": "momentum"}, torch.optim.SGD, {"momentum": 0.9}),
        ({"type": "momentum", "momentum": 0.5}, torch.optim.SGD, {"momentum": 0.5}),
        ({"type": "adam"}, torch.optim.Adam, {"decoupled_weight_decay": False}),
        ({"type": "adamw"}, torch.optim.AdamW, {"decoupled_weight_decay": True}),
        ({}, torch.optim.AdamW, {}),
    ],
)
def test_the_optimizer_is_torchs(
    options: dict[str, object], kind: type[torch.optim.Optimizer], expected: dict[str, object]
) -> None:
    spec = Optimizer.model_validate(options | {"lr": 0.02, "weight_decay": 0.3})
    optimizer = build_optimizer(spec, [torch.ones(1, requires_grad=True)])
    assert type(optimizer) is kind
    found = optimizer.param_groups[0]
    assert {key: found[key] for key in expected} == expected
    assert (found["lr"], found["weight_decay"]) == (0.02, 0.3)
    set_rate(optimizer, 0.5)
    assert found["lr"] == 0.5
