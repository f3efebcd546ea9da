"""A loaded model version: it answers what an endpoint is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from tidegate.errors import SpecError
from tidegate.models import module as modules
from tidegate.models.build import build, fill, given
from tidegate.models.code import Code
from tidegate.models.huggingface import Encoder
from tidegate.signature import Signature
from tidegate.spec.model import Model as ModelSpec
from tidegate.spec.registered import HuggingFace, Module
from tidegate.transforms.base import Array
from tidegate.transforms.columns import Columns
from tidegate.transforms.target import target_transform

SAME = 1e-2
"""How far an answer may be from the one that was kept, of the largest one: devices and their libraries differ."""


class Model(ABC):
    """A version, whatever it was made by. `predict` may be called from several threads."""

    module: nn.Module
    any_length: Collection[str] = ()
    """Inputs `[rows, steps, ...]` of which shorter rows may be filled up with NaN."""

    def __init__(self, document: Mapping[str, Any], digest: str) -> None:
        self.name, self.digest = str(document["name"]), digest
        self.signature = Signature.from_json(document["signature"])

    @abstractmethod
    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answers by output name, `[rows, ...]`, for columns as the signature names them.

        Raises RequestError for values the model cannot take.
        """

    @abstractmethod
    def example(self, rows: int = 1) -> dict[str, Array]:
        """Inputs that the model can take, for a warm-up."""


class Trained(Model):
    """Trained here: transforms, a module, and the way back to the target's classes or unit."""

    def __init__(
        self, document: Mapping[str, Any], weights: Mapping[str, Tensor], code: Code, digest: str, device: str
    ) -> None:
        super().__init__(document, digest)
        # In the order they were trained in. Files of earlier releases have it in the signature only.
        self.columns = Columns({tensor.name: document["columns"][tensor.name] for tensor in self.signature.inputs})
        self.target = target_transform(document["target"]["column"], document["target"]["state"])
        options: Any = TypeAdapter(ModelSpec).validate_python(document["model"])
        features = [column.feature for column in self.columns.transforms.values()]
        self.module = _filled(build(options, features, self.target.feature, seed=0, code=code), weights, device)
        self._device = device
        self.any_length = self.columns.any_length

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        arrays = self.columns.apply(inputs)
        with torch.inference_mode():
            outputs = self.module({name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()})
        return self.target.answers(outputs.float().cpu().numpy())

    def example(self, rows: int = 1) -> dict[str, Array]:
        return self.columns.example(rows)


class Given(Model):
    """A registered module. It answers the row that it was registered with, or is refused."""

    def __init__(
        self,
        document: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        code: Code,
        example: tuple[dict[str, Array], dict[str, Array]],
        digest: str,
        device: str,
    ) -> None:
        super().__init__(document, digest)
        options = Module.model_validate(document["model"])
        self.module = _filled(given(options, code), weights, device)
        self._call, self._device = options.call, device
        self._row, expected = example
        found = self.predict(self._row)
        reals = {name: array for name, array in found.items() if array.dtype.kind == "f"}
        if modules.differ(reals, {name: array for name, array in expected.items() if name in reals}, SAME):
            raise SpecError("it answers its example otherwise than when it was registered")

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        # In the order of the signature: a request may have another.
        ordered = {tensor.name: inputs[tensor.name] for tensor in self.signature.inputs}
        return modules.answer(self.module, self._call, ordered, self._device)

    def example(self, rows: int = 1) -> dict[str, Array]:
        return {name: np.repeat(array, rows, axis=0) for name, array in self._row.items()}


class Folder(Model):
    """A registered Hugging Face folder, which takes texts."""

    def __init__(
        self,
        document: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        files: Mapping[str, bytes],
        digest: str,
        device: str,
    ) -> None:
        super().__init__(document, digest)
        (self._input,) = (tensor.name for tensor in self.signature.inputs)
        self._encoder = Encoder(HuggingFace.model_validate(document["model"]), files, weights)
        self.module = self._encoder.module.to(device)

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._encoder.answer([str(text) for text in inputs[self._input].reshape(-1).tolist()])

    def example(self, rows: int = 1) -> dict[str, Array]:
        return {self._input: np.full(rows, "a", dtype=object)}


def _filled(module: nn.Module, weights: Mapping[str, Tensor], device: str) -> nn.Module:
    try:
        fill(module, weights)
    except ValueError as error:
        raise ValueError(f"its weights do not fit the module that its spec makes ({error})") from None
    return module.eval().to(device)
