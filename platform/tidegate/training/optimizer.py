"""Optimizers and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from tidegate.spec.train import Optimizer, Schedule


def build_optimizer(spec: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's optimizer of the spec's type."""
    if spec.type == "sgd":
        return torch.optim.SGD(parameters, lr=spec.lr, weight_decay=spec.weight_decay)
    if spec.type == "momentum":
        return torch.optim.SGD(parameters, lr=spec.lr, weight_decay=spec.weight_decay, momentum=spec.momentum)
    if spec.type == "adam":
        return torch.optim.Adam(parameters, lr=spec.lr, weight_decay=spec.weight_decay)
    if spec.type == "adamw":
        return torch.optim.AdamW(parameters, lr=spec.lr, weight_decay=spec.weight_decay)
    raise ValueError(f"no optimizer {spec.type!r}")


def rate_factor(spec: Schedule, step: int, total_steps: int) -> float:
    """What the learning rate is multiplied by at `step` (0-based): a linear warm-up, then the schedule."""
    warmup = math.ceil(spec.warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    if spec.type == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if spec.type == "linear" else 1.0


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
