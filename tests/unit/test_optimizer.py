"""The learning rate of each step, and which of torch's optimizers a spec means."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import TrainingError
from tidegate.spec.train import Optimizer, Schedule
from tidegate.training.optimizer import build_optimizer, check_parameters, rate_factor, set_rates

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
    assert found["fused"] is True


def test_each_group_of_weights_has_its_own_rate() -> None:
    weights = [torch.ones(1, requires_grad=True) for _ in range(3)]
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.5}], lr=0.1)
    set_rates(optimizer, [0.3, 0.2])
    for weight in weights:
        weight.grad = torch.ones(1)
    optimizer.step()
    assert [float(weight.detach()) for weight in weights] == pytest.approx([0.7, 0.8, 0.8])
    with pytest.raises(ValueError, match="zip"):
        set_rates(optimizer, [0.1])


def test_weights_of_another_model_are_refused_unless_they_are_frozen() -> None:
    mine, other = (torch.ones(2, 3, requires_grad=True) for _ in range(2))
    check_parameters(torch.optim.SGD([mine, torch.ones(4)], 0.1), [mine, other])
    with pytest.raises(TrainingError, match=r"shape \[2, 3\]") as caught:
        check_parameters(torch.optim.SGD([{"params": [mine]}, {"params": [other]}], 0.1), [mine])
    assert "fit.prepare" in caught.value.remedy
