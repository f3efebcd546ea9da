"""From a model spec to a module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tidegate.models.cnn import Cnn
from tidegate.models.linear import Linear
from tidegate.models.mlp import Mlp
from tidegate.models.transformer import Transformer
from tidegate.spec import model as spec
from tidegate.transforms.base import Feature


def build(options: spec.Model, features: Sequence[Feature], outputs: int, *, seed: int) -> nn.Module:
    """A module with initial weights drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _module(options, features, outputs)


def _module(options: spec.Model, features: Sequence[Feature], outputs: int) -> nn.Module:
    if isinstance(options, spec.Linear):
        return Linear(options, features, outputs)
    if isinstance(options, spec.Mlp):
        return Mlp(options, features, outputs)
    if isinstance(options, spec.Cnn):
        return Cnn(options, features, outputs)
    if isinstance(options, spec.Transformer):
        return Transformer(options, features, outputs)
    raise ValueError(f"no model type for {type(options).__name__}")
