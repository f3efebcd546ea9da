"""A module on its example: what it takes and answers, and that an endpoint may ask it for many rows at once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tidegate import example
from tidegate.errors import SpecError
from tidegate.models.code import Code
from tidegate.models.module import answer, differ
from tidegate.signature import DATATYPES, MAX_AXES, Signature, TensorSpec
from tidegate.spec.registered import Call
from tidegate.transforms.base import Array

EQUAL = 1e-4
"""How far two answers may be apart that should be one, of the largest: sums are added in another order."""


@dataclass(frozen=True)
class Trial:
    """`arrays` are the rows, `answers` what the module says to them."""

    arrays: dict[str, Array]
    answers: dict[str, Array]

    def signature(self) -> Signature:
        """Raises SpecError for what an endpoint cannot take or answer."""
        return Signature(_specs(self.arrays, "takes"), _specs(self.answers, "answers"))

    def first(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """One row and its answer."""
        arrays, answers = (
            {name: array[:1].copy() for name, array in side.items()} for side in (self.arrays, self.answers)
        )
        return arrays, answers


def rows(module: nn.Module, given: object, inputs: str | Sequence[str] | None) -> dict[str, Array]:
    """An example as the module takes it: numbers with a fraction in the type of its weights. Raises SpecError."""
    if given is None:
        raise SpecError("there is no example", remedy="pass a few rows of what the model takes: example=...")
    if half := precisions(module) & {torch.float16, torch.bfloat16}:
        raise SpecError(f"the module computes in {half.pop()}", remedy="register module.float()")
    wanted = np.float64 if precisions(module) == {torch.float64} else np.float32
    found = example.arrays(given, inputs, default=_parameter(module))
    return {name: array.astype(wanted) if array.dtype.kind == "f" else array for name, array in found.items()}


def precisions(module: nn.Module) -> set[torch.dtype]:
    """The types of a module's weights that are real numbers."""
    return {value.dtype for value in module.state_dict().values() if value.is_floating_point()}


def attempt(module: nn.Module, call: Call, arrays: Mapping[str, Array], code: Code, whose: str) -> Trial:
    """Ask the module. Raises SpecError, which names it as `whose`, when its answers are none to the single rows."""
    count = len(next(iter(arrays.values())))
    several = {name: np.repeat(array, 2, axis=0) for name, array in arrays.items()} if count == 1 else dict(arrays)
    answers = _pass(module, call, several, code, whose)
    rows = max(count, 2)
    for name, array in answers.items():
        if array.ndim == 0 or len(array) != rows:
            raise SpecError(
                f"for {rows} rows {whose} answers {name} of shape {list(array.shape)}",
                expected="one answer a row, the rows first",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise SpecError(f"{whose} answers the example with {name} that is NaN or infinite")
    alone = _pass(module, call, {name: array[:1] for name, array in several.items()}, code, whose)
    if differ(alone, {name: array[:1] for name, array in answers.items()}, EQUAL):
        raise SpecError(
            f"{whose} answers a row by itself otherwise than among others",
            expected="answers that depend on the row alone: an endpoint computes those of many requests at once",
        )
    return Trial(dict(arrays), {name: array[:count] for name, array in answers.items()})


def _pass(module: nn.Module, call: Call, arrays: Mapping[str, Array], code: Code, whose: str) -> dict[str, Array]:
    device = next((value.device for value in module.state_dict().values()), torch.device("cpu"))
    try:
        return answer(module, call, arrays, device)
    except SpecError as error:
        raise SpecError(f"{whose} {error.happened}", expected=error.expected) from None
    except Exception as error:
        shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in arrays.items())
        raise SpecError(
            f"{whose} fails on the example ({shapes}): {code.describe(error)}",
            remedy="pass rows that its forward pass takes; inputs='x' makes all columns one input of that name",
        ) from error


def _parameter(module: nn.Module) -> str:
    """What `forward` calls its input."""
    try:
        return next(iter(inspect.signature(module.forward).parameters), "input")
    except (TypeError, ValueError):
        return "input"


def _specs(arrays: Mapping[str, Array], verb: str) -> tuple[TensorSpec, ...]:
    specs = []
    for name, array in arrays.items():
        datatype = next((key for key, dtype in DATATYPES.items() if dtype == array.dtype), None)
        if datatype is None or not name or 0 in array.shape or array.ndim > MAX_AXES:
            raise SpecError(f"the model {verb} {name!r} of {array.dtype} {list(array.shape)}", expected="real numbers")
        specs.append(TensorSpec(name, datatype, (-1, *array.shape[1:])))
    return tuple(specs)
