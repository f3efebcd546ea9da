"""Optimizers and the learning rate of each step."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from tidegate.errors import TrainingError
from tidegate.spec.train import Optimizer, Schedule


def build_optimizer(spec: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's optimizer of the spec's type, in its fused form: one pass over all weights."""
    common: dict[str, Any] = {"lr": spec.lr, "weight_decay": spec.weight_decay, "fused": True}
    if spec.type == "sgd":
        return torch.optim.SGD(parameters, **common)
    if spec.type == "momentum":
        return torch.optim.SGD(parameters, momentum=spec.momentum, **common)
    if spec.type == "adam":
        return torch.optim.Adam(parameters, **common)
    if spec.type == "adamw":
        return torch.optim.AdamW(parameters, **common)
    raise ValueError(f"no optimizer {spec.type!r}")


def leave_compiler_out() -> None:
    """Let torch's optimizers be made, saved and restored without importing torch's compiler.

    They import it to keep it away from their methods. A worker that starts would spend a quarter of its time on that.
    """
    optimizer = torch.optim.Optimizer
    for method in (optimizer.add_param_group, optimizer.state_dict, optimizer.load_state_dict, optimizer.zero_grad):
        plain: Any = inspect.unwrap(method)
        # Where torch looks for what the compiler made of the method (torch._compile); another torch looks elsewhere,
        # and imports the compiler.
        setattr(plain, "__dynamo_disable", plain)


def eager_step(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    """`optimizer.step` without the compiler's part in it, which it would import; of torch's own optimizers only."""
    step = inspect.unwrap(type(optimizer).step)
    if not step.__module__.startswith("torch.optim.") or optimizer.defaults.get("differentiable"):
        return optimizer.step
    return torch.no_grad()(functools.partial(step, optimizer))


def check_parameters(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Raises TrainingError when the optimizer would change weights whose gradients no reduction adds up."""
    known = {id(parameter) for parameter in parameters}
    found = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if strangers := [list(p.shape) for p in found if p.requires_grad and id(p) not in known]:
        raise TrainingError(
            f"the optimizer has weights that are not the model's, of shape {', '.join(map(str, strangers))}",
            remedy="make them part of the module that fit.prepare is given",
        )


def rate_factor(spec: Schedule, step: int, total_steps: int) -> float:
    """What the learning rate is multiplied by at `step` (0-based): a linear warm-up, then the schedule."""
    warmup = math.ceil(spec.warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    if spec.type == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if spec.type == "linear" else 1.0


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Set the learning rate of each group of parameters."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
