"""A module that was not trained here: arrays by name in, arrays by name out, as its own forward pass has them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tidegate.errors import SpecError
from tidegate.models.custom import kind
from tidegate.spec.registered import Call
from tidegate.transforms.base import Array

OUTPUT = "output"
TENSORS = "a tensor, or a mapping or tuple of tensors"


def convention(module: nn.Module, names: Sequence[str]) -> Call:
    """How `forward` takes inputs of these names: one as it is; several by keyword if it has such parameters."""
    if len(names) == 1:
        return "tensor"
    try:
        inspect.signature(module.forward).bind(**dict.fromkeys(names))
    except (TypeError, ValueError):
        return "mapping"
    return "keywords"


def answer(module: nn.Module, call: Call, inputs: Mapping[str, Array], device: str | torch.device) -> dict[str, Array]:
    """One pass. Raises SpecError when it gives something else than tensors, and what `forward` raises."""
    tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
    with torch.inference_mode():
        if call == "tensor":
            found = module(*tensors.values())
        else:
            found = module(**tensors) if call == "keywords" else module(tensors)
    return {name: _array(tensor) for name, tensor in _named(found).items()}


def differ(found: Mapping[str, Array], expected: Mapping[str, Array], tolerance: float) -> bool:
    """Whether answers are other than expected, by more than `tolerance` of the largest one or in anything not real."""
    return found.keys() != expected.keys() or any(_differs(found[name], expected[name], tolerance) for name in expected)


def _differs(found: Array, expected: Array, tolerance: float) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return True
    if found.dtype.kind != "f":
        return not np.array_equal(found, expected)
    largest = float(np.abs(expected).max(initial=0.0))
    return not np.allclose(found, expected, rtol=0.0, atol=tolerance * largest)


def _named(found: object) -> dict[str, Tensor]:
    if isinstance(found, Tensor):
        named: dict[Any, Any] = {OUTPUT: found}
    elif isinstance(found, Mapping):
        named = dict(found)
    elif isinstance(found, tuple | list):
        names = getattr(found, "_fields", None) or [f"{OUTPUT}_{place}" for place in range(len(found))]
        named = dict(zip(names, found, strict=True))
    else:
        raise SpecError(f"the module answers with {kind(found)}", expected=TENSORS)
    for name, value in named.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise SpecError(f"the module answers with {kind(value)} as {name!r}", expected=TENSORS)
    if not named:
        raise SpecError("the module answers with nothing", expected=TENSORS)
    return named


def _array(tensor: Tensor) -> Array:
    # Half precision has no form in JSON, and bfloat16 none in NumPy.
    is_half = tensor.dtype in (torch.float16, torch.bfloat16)
    array: Array = (tensor.float() if is_half else tensor).cpu().numpy()
    return array
