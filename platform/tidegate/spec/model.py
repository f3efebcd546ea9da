"""The model types a run can train. Each has a file of the same name in `tidegate/models/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints, model_validator

from tidegate.spec.base import BrokenRules, Part

Init = Literal["xavier", "kaiming", "zero"]
Width = Annotated[int, Field(ge=1, le=65_536)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Linear(Part):
    """A linear map of all inputs: linear regression, or logistic (softmax) classification."""

    type: Literal["linear"]
    init: Init = "zero"


class Mlp(Part):
    """Fully connected layers with ReLU between them."""

    type: Literal["mlp"]
    hidden: Annotated[list[Width], Field(min_length=1, max_length=64)] = [128]
    dropout: Dropout = 0.0
    init: Init = "kaiming"


class Cnn(Part):
    """Blocks of 3 x 3 convolution, ReLU and 2 x 2 max pooling, then fully connected layers."""

    type: Literal["cnn"]
    channels: Annotated[list[Width], Field(min_length=1, max_length=32)] = [32, 64]
    hidden: Width = 128
    dropout: Dropout = 0.0
    init: Init = "kaiming"


class Transformer(Part):
    """A pre-norm encoder over tokens with learned positions; the mean over the tokens is classified."""

    type: Literal["transformer"]
    layers: int = Field(2, ge=1, le=200)
    width: Width = 128
    heads: int = Field(4, ge=1, le=256)
    dropout: Dropout = 0.1
    init: Init = "xavier"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Transformer:
        if self.width % self.heads:
            sentence = f"width {self.width} is not a multiple of heads {self.heads}"
            raise BrokenRules([("width", sentence), ("heads", sentence)])
        return self


ImportPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=512)]


class Custom(Part):
    """A person's own module. `build` and `loss` name a class or function as `package.module:name`."""

    type: Literal["custom"]
    build: ImportPath
    loss: ImportPath | None = None
    args: dict[str, JsonValue] = {}


Model = Annotated[Linear | Mlp | Cnn | Transformer | Custom, Field(discriminator="type")]
