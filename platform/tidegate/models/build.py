"""From a model spec to a module."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tidegate.models import custom
from tidegate.models.cnn import Cnn
from tidegate.models.code import Code
from tidegate.models.conv_attention import ConvAttention
from tidegate.models.ctc import Ctc
from tidegate.models.forecast import Forecast
from tidegate.models.linear import Linear
from tidegate.models.mlp import Mlp
from tidegate.models.rnn import Rnn
from tidegate.models.seq2seq import Seq2Seq
from tidegate.models.transformer import Transformer
from tidegate.spec import model as spec
from tidegate.spec.base import Part
from tidegate.spec.registered import Module
from tidegate.transforms.base import Feature

MOST_NAMES = 4
"""Names in a sentence; of more, the number is told."""


def build(
    options: spec.Model, features: Sequence[Feature], target: Feature, *, seed: int, code: Code | None = None
) -> nn.Module:
    """A module with initial weights drawn from `seed` alone, for inputs of `features` and what is to be predicted.

    `code` holds the sources of a person's own model; without it, one is imported from installed packages only. Raises
    SpecError for an own model that cannot be made.
    """
    with _random_state(seed):
        return _module(options, features, target, code or Code({}))


def given(options: Module, code: Code) -> nn.Module:
    """The module of a version that was not trained here, before it has its weights. Raises SpecError."""
    with _random_state(0):
        return custom.constructed(options.build, options.args, code)


def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a module its weights. Raises ValueError, which says why they do not fit."""
    # Lazy layers have no shape yet; they take that of their weights.
    is_lazy = any(map(torch.nn.parameter.is_lazy, module.state_dict().values()))
    if not is_lazy and (reason := misfit(module, weights)):
        raise ValueError(reason)
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())) from None


def misfit(module: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Why `weights` do not fit the module, in words. Empty when they do."""
    own = module.state_dict()
    other = [
        f"{name} {list(weights[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    parts = {
        "weights that the module lacks": [name for name in weights if name not in own],
        "weights missing": [name for name in own if name not in weights],
        "weights of another shape": other,
    }
    return "; ".join(f"{what}: {_first(names)}" for what, names in parts.items() if names)


def _first(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python from `seed`: a person's module may draw weights from any of them."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


_TYPES: dict[type[Part], Callable[[Any, Sequence[Feature], int], nn.Module]] = {
    spec.Linear: Linear,
    spec.Mlp: Mlp,
    spec.Cnn: Cnn,
    spec.ConvAttention: ConvAttention,
    spec.Rnn: Rnn,
    spec.Forecast: Forecast,
    spec.Transformer: Transformer,
}
"""Those that give so many numbers a row."""
_SEQUENCE_TYPES: dict[type[Part], Callable[[Any, Sequence[Feature], Feature], nn.Module]] = {
    spec.Seq2Seq: Seq2Seq,
    spec.Ctc: Ctc,
}
"""Those that write a text."""


def _module(options: spec.Model, features: Sequence[Feature], target: Feature, code: Code) -> nn.Module:
    if type(options) in _SEQUENCE_TYPES:
        return _SEQUENCE_TYPES[type(options)](options, features, target)
    outputs = target.cardinality or math.prod(target.shape)
    if isinstance(options, spec.Custom):
        return custom.build(options, features, outputs, code)
    return _TYPES[type(options)](options, features, outputs)
