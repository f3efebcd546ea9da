"""The learning rate of each step, and which of torch's optimizers a spec means."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import TrainingError
from tidegate.spec.train import Optimizer, Schedule
from tidegate.training.optimizer import build_optimizer, check_parameters, eager_step, rate_factor, set_rates

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


def trained(optimizer: torch.optim.Optimizer, *, eager: bool) -> list[torch.Tensor]:
    step = eager_step(optimizer) if eager else optimizer.step
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for seed in range(5):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        step()
    return weights + [value for each in optimizer.state.values() for value in each.values() if torch.is_tensor(value)]


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "adamw"])
def test_a_step_without_the_compiler_is_the_same_step(kind: str) -> None:
    def optimizer() -> torch.optim.Optimizer:
        weights = [torch.linspace(-1, 1, 5).requires_grad_(), torch.ones(2, 3, requires_grad=True)]
        return build_optimizer(Optimizer.model_validate({"type": kind, "lr": 0.1, "weight_decay": 0.01}), weights)

    found, expected = trained(optimizer(), eager=True), trained(optimizer(), eager=False)
    assert len(found) == len(expected) > 2 - (kind == "sgd")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_optimizer_of_somebody_else_steps_its_own_way() -> None:
    class Counting(torch.optim.SGD):
        steps = 0

        def step(self, closure: object = None) -> None:
            self.steps += 1

    optimizer = Counting([torch.ones(1, requires_grad=True)], lr=0.1)
    eager_step(optimizer)()
    assert optimizer.steps == 1


USES_OPTIMIZERS = """
import sys, torch
from tidegate.training.optimizer import eager_step, leave_compiler_out
leave_compiler_out()
for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
    weight = torch.ones(3, requires_grad=True)
    optimizer = kind([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    eager_step(optimizer)()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
print("torch._dynamo" in sys.modules)
"""


def test_workers_do_not_import_the_compiler() -> None:
    """It would be a quarter of what a resize takes."""
    run = subprocess.run([sys.executable, "-c", USES_OPTIMIZERS], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False", run.stderr


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
