"""What a model takes and answers: named tensors with a datatype of the Open Inference Protocol and a shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np

from tidegate.errors import ArtifactError

MAX_AXES = 32
CONTENT = "content_type"
"""The parameter of a tensor that tells what its bytes hold (as MLServer has it)."""
RATE = "sampling_rate"
"""The parameter of a tensor of sound that tells how many samples it has a second."""
Content = Literal["", "image", "audio"]
CONTENTS: dict[str, Content] = {"image": "image", "audio": "audio"}
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(object),
}
"""Protocol datatype -> numpy dtype. FP16 has no JSON form."""


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor. `shape[0]` is the rows and always -1; further on, -1 is a size that varies.

    `content` is set where it may also come as BYTES of a file: an image, or audio, which has so many samples a second
    where nothing else is said.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: Content = ""
    sampling_rate: int = 0

    def to_json(self) -> dict[str, Any]:
        own: dict[str, Any] = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        parameters = {CONTENT: self.content, RATE: self.sampling_rate}
        known = {name: value for name, value in parameters.items() if value}
        return own | {"parameters": known} if known else own

    @classmethod
    def from_json(cls, value: object) -> TensorSpec:
        """Raises ArtifactError for anything but a well-formed tensor description."""
        if not isinstance(value, dict):
            _bad_signature(f"describes a tensor as {shown(value)}")
        name, datatype, shape = value.get("name"), value.get("datatype"), value.get("shape")
        if not isinstance(name, str) or not name:
            _bad_signature(f"names a tensor {shown(name)}")
        if not isinstance(datatype, str) or datatype not in DATATYPES:
            _bad_signature(f'gives "{name}" the datatype {shown(datatype)}')
        if not isinstance(shape, list | tuple) or not shape or not all(type(size) is int for size in shape):
            _bad_signature(f'gives "{name}" no shape of integers')
        if shape[0] != -1 or not all(size == -1 or size > 0 for size in shape) or len(shape) > MAX_AXES:
            _bad_signature(f'gives "{name}" the shape {list(shape)[:MAX_AXES]}')
        parameters = value.get("parameters")
        told = parameters if isinstance(parameters, dict) else {}
        content, rate = told.get(CONTENT), told.get(RATE)
        # Other servers have other kinds, which need nothing of a client.
        kind = CONTENTS.get(content, "") if isinstance(content, str) else ""
        return cls(name, datatype, tuple(shape), kind, rate if kind == "audio" and type(rate) is int else 0)


@dataclass(frozen=True)
class Signature:
    """What a model takes and what it answers."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        return {"inputs": [t.to_json() for t in self.inputs], "outputs": [t.to_json() for t in self.outputs]}

    @classmethod
    def from_json(cls, value: object) -> Signature:
        """Reads `inputs` and `outputs` and no other key, so a metadata body will do. Raises ArtifactError."""
        if not isinstance(value, dict):
            _bad_signature(f"is {shown(value)}")
        return cls(_specs(value, "inputs"), _specs(value, "outputs"))


def _specs(value: dict[str, Any], side: str) -> tuple[TensorSpec, ...]:
    items = value.get(side)
    if not isinstance(items, list) or not items:
        _bad_signature(f"has no list of {side}")
    specs = tuple(TensorSpec.from_json(item) for item in items)
    if len({spec.name for spec in specs}) < len(specs):
        _bad_signature(f"names two {side} alike")
    return specs


def _bad_signature(what: str) -> NoReturn:
    raise ArtifactError(
        f"The model's signature {what}",
        expected='{"inputs": [T], "outputs": [T]}, T = {"name", "datatype", "shape": [-1, ..]}',
        remedy="The version's files are damaged or another program wrote them: train or register the model again",
    )


def shown(value: object) -> str:
    """A short form of anything JSON holds. It does not recurse: `repr` of a deep list would."""
    if isinstance(value, list | tuple | dict):
        return "an object" if isinstance(value, dict) else "a list"
    words = {"None": "null", "True": "true", "False": "false"}
    text = words.get(repr(value), repr(value))
    return text if len(text) <= 60 else text[:57] + "..."
