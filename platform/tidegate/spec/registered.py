"""What a version says of a model that was not trained here. It lies in the artifact; a run spec cannot name these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from tidegate.spec.base import Part
from tidegate.spec.model import ImportPath

Call = Literal["tensor", "keywords", "mapping"]


class Module(Part):
    """A module that `build` makes of `args`. Its forward pass takes one tensor, or several: by keyword or a mapping."""

    type: Literal["module"]
    build: ImportPath
    args: dict[str, JsonValue] = {}
    call: Call = "tensor"


class HuggingFace(Part):
    """A folder as `transformers` writes it. `labels` are the names of the classes, in the order of the outputs."""

    type: Literal["huggingface"]
    answers: Literal["embedding", "label", "score"]
    max_length: int = Field(ge=1)
    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = False
    labels: list[str] = []


Registered = Annotated[Module | HuggingFace, Field(discriminator="type")]
