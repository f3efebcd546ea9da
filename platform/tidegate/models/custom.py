"""A person's own module and loss, by import path."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tidegate.errors import SpecError, TrainingError
from tidegate.models.code import Code, collect
from tidegate.spec import model as spec
from tidegate.transforms.base import Feature
from tidegate.transforms.text import UNKNOWN

Loss = Callable[[Tensor, Tensor], Tensor]

TRIED_ROWS = 2


def code_of(options: spec.Model) -> Code:
    """The sources of a person's own model, read and imported here and now; none for the other types.

    Raises SpecError when they are not found, do not import, or are too large to keep.
    """
    if not isinstance(options, spec.Custom):
        return Code({})
    paths = {"model.build": options.build, "model.loss": options.loss}
    return collect({key: path for key, path in paths.items() if path is not None})


def build(options: spec.Custom, features: Sequence[Feature], outputs: int, code: Code) -> nn.Module:
    """What `model.build` makes of `model.args`, and of `features` and `outputs` where it has parameters of these names.

    It is called with `{input name: [rows, ...]}` as all model types are. Its own forward pass gets each input in the
    feature's shape (`[rows, channels, height, width]` for an image): one input as it is, several as a mapping. A call
    with anything else is passed on. A batch of two rows goes through it once, for errors to show here.

    Raises SpecError when this makes no module, or none that maps these inputs to `outputs` numbers a row.
    """
    offered = {"features": tuple(features), "outputs": outputs}
    module = constructed(options.build, options.args, code, prefix="model.", offered=offered)
    adapt(module, features)
    _try(module, options, features, outputs, code)
    return module


def constructed(
    path: str, args: Mapping[str, Any], code: Code, *, prefix: str = "", offered: Mapping[str, Any] | None = None
) -> nn.Module:
    """What `path` makes of `args`, and of what is `offered` where it has parameters of these names.

    Raises SpecError, which names `build` and `args` with `prefix` before them, when this makes no module.
    """
    key = f"{prefix}build: {path}"
    function = code.resolve(path, f"{prefix}build")
    if not callable(function) or isinstance(function, nn.Module):
        raise SpecError(f"{key} is {kind(function)}", expected="a class or a function")
    arguments = _arguments(function, path, args, offered or {}, f"{prefix}args")
    try:
        module = function(**arguments)
    except Exception as error:
        raise SpecError(f"{key} failed: {code.describe(error)}") from error
    if not isinstance(module, nn.Module):
        raise SpecError(f"{key} made {kind(module)}", expected="a torch.nn.Module")
    return module


def adapt(module: nn.Module, features: Sequence[Feature]) -> None:
    """Have a person's module take the platform's `{input name: [rows, ...]}` as well as its own inputs."""
    module.register_forward_pre_hook(_Inputs(tuple(features)))


def shaped(inputs: Mapping[str, Tensor], features: Sequence[Feature]) -> dict[str, Tensor]:
    """The features among prepared inputs, `[rows, *feature.shape]` each."""
    return {feature.name: inputs[feature.name].reshape(-1, *feature.shape) for feature in features}


def loss(options: spec.Custom, code: Code) -> Loss | None:
    """The person's loss: raw outputs and targets of some rows -> their mean. None when the spec names none.

    Outputs are float32, also of a pass in bf16. Targets are class codes `[rows]`, or numbers `[rows]`, for which the
    outputs are `[rows]`, too. A class is called once without arguments. Raises SpecError; the function raises
    TrainingError for a result that is not one number.
    """
    if options.loss is None:
        return None
    path, function = options.loss, code.resolve(options.loss, "model.loss")
    if isinstance(function, type):
        try:
            function = function()
        except Exception as error:
            raise SpecError(f"model.loss: {path} failed: {code.describe(error)}") from error
    if not callable(function):
        raise SpecError(f"model.loss: {path} is {kind(function)}", expected="a class or a function")

    def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.float()
        if targets.is_floating_point():
            # [rows, 1] against [rows] would quietly become [rows, rows].
            outputs = outputs.reshape(targets.shape)
        found = function(outputs, targets)
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise TrainingError(f"model.loss: {path} gave {kind(found)}", expected="one number, the mean over the rows")
        return found.reshape(())

    return mean_loss


@dataclass(frozen=True)
class _Inputs:
    """Before a forward pass: from the platform's mapping to what a person's module takes."""

    features: tuple[Feature, ...]

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(args) != 1 or not isinstance(args[0], Mapping):
            return args
        inputs = shaped(args[0], self.features)
        return (inputs if len(inputs) > 1 else inputs[self.features[0].name],)


def _arguments(
    function: Callable[..., Any], path: str, args: Mapping[str, Any], offered: Mapping[str, Any], key: str
) -> dict[str, Any]:
    own = copy.deepcopy(dict(args))
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return own  # Something built in that tells no signature.
    arguments = {name: value for name, value in offered.items() if name in signature.parameters} | own
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise SpecError(
            f"{key}: {path} cannot be called with {', '.join(arguments) or 'nothing'}: {error}",
            expected=f"arguments for {signature}",
        ) from None
    return arguments


def _try(module: nn.Module, options: spec.Custom, features: Sequence[Feature], outputs: int, code: Code) -> None:
    """A pass of two rows. It also gives lazy layers their weights."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            found = module(_example(features))
    except Exception as error:
        raise SpecError(
            f"model.build: a pass of {TRIED_ROWS} rows through {options.build} failed: {code.describe(error)}",
            expected=f"a module for {_takes(features)}",
        ) from error
    module.train(was_training)
    shapes = [(TRIED_ROWS, outputs), (TRIED_ROWS,)][: 2 if outputs == 1 else 1]
    if not isinstance(found, Tensor) or tuple(found.shape) not in shapes:
        raise SpecError(
            f"model.build: for {TRIED_ROWS} rows {options.build} gave {kind(found)}",
            expected=f"a tensor of shape {' or '.join(str(list(shape)) for shape in shapes)}",
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise SpecError(f"model.build: {options.build} made a module without weights to train")
    weights_of(module, f"model.build: {options.build}")


def weights_of(module: nn.Module, whose: str) -> dict[str, Tensor]:
    """The module's `state_dict`, buffers included. Raises SpecError for one that holds more than tensors."""
    weights = dict(module.state_dict())
    if other := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        raise SpecError(
            f"{whose} keeps {', '.join(other)} with its weights, which is no tensor",
            expected="a state_dict of tensors",
        )
    return weights


def _example(features: Sequence[Feature]) -> dict[str, Tensor]:
    """Two rows of inputs as they come from a prepared dataset."""
    inputs = {}
    for feature in features:
        size = (TRIED_ROWS, math.prod(feature.shape))
        if feature.kind == "text":
            inputs[feature.name] = torch.full(size, UNKNOWN, dtype=torch.int32)
        else:
            inputs[feature.name] = torch.zeros(size, dtype=torch.int32 if feature.cardinality else torch.float32)
    return inputs


def _takes(features: Sequence[Feature]) -> str:
    return ", ".join(f"{feature.name} {['rows', *feature.shape]}".replace("'", "") for feature in features)


def kind(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"an object of type {type(value).__name__}"
