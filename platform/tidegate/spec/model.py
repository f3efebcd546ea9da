"""The model types a run can train. Each has a file of the same name in `tidegate/models/`.

A new one is a class here, in `Model` below, a file there, and a line in `models/build.py` (docs/model-types.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from tidegate.spec.base import BrokenRules, Part

Init = Literal["xavier", "kaiming"]
Width = Annotated[int, Field(ge=1, le=65_536)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Takes:
    """The types of the inputs that a model takes, `one` of them alone or any number, and of the target it learns.

    With `cut`, a pass is as long as its longest row: every batch may have another shape.
    """

    types: tuple[str, ...]
    one: bool = False
    targets: tuple[str, ...] = ("category", "number")
    cut: bool = False


class Linear(Part):
    """A linear map of all inputs: linear regression, or logistic (softmax) classification."""

    takes: ClassVar = Takes(("number", "category", "image"))
    type: Literal["linear"]
    init: Literal["zero"] | Init = "zero"


class Mlp(Part):
    """Fully connected layers with ReLU between them."""

    takes: ClassVar = Takes(("number", "category", "image"))
    type: Literal["mlp"]
    hidden: Annotated[list[Width], Field(min_length=1, max_length=64)] = [128]
    dropout: Dropout = 0.0
    init: Init = "kaiming"


class Cnn(Part):
    """Blocks of 3 x 3 convolution, ReLU and 2 x 2 max pooling, then fully connected layers."""

    takes: ClassVar = Takes(("image",), one=True)
    type: Literal["cnn"]
    channels: Annotated[list[Width], Field(min_length=1, max_length=32)] = [32, 64]
    hidden: Width = 128
    dropout: Dropout = 0.0
    init: Init = "kaiming"


class _Heads(Part):
    """Attention of several heads, each `width / heads` wide."""

    width: Width = 128
    heads: int = Field(4, ge=1, le=256)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        _check_heads(self.width, self.heads)
        return self


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        sentence = f"width {width} is not a multiple of heads {heads}"
        raise BrokenRules([("width", sentence), ("heads", sentence)])


class ConvAttention(_Heads):
    """Convolutions and pooling, then attention over the positions whose queries, keys and values are convolutions."""

    takes: ClassVar = Takes(("image",), one=True)
    type: Literal["conv_attention"]
    stem: Annotated[list[Width], Field(min_length=1, max_length=32)] = [32]
    layers: int = Field(2, ge=1, le=200)
    width: Width = 64
    dropout: Dropout = 0.0
    init: Init = "kaiming"


class Rnn(Part):
    """A recurrent network over a series, a sound or a text; its last state, or the mean of all, is mapped."""

    takes: ClassVar = Takes(("series", "audio", "text"), one=True)
    type: Literal["rnn"]
    cell: Literal["rnn", "gru", "lstm"] = "gru"
    layers: int = Field(1, ge=1, le=64)
    width: Width = 128
    bidirectional: bool = False
    pool: Literal["last", "mean"] = "last"
    dropout: Dropout = 0.0
    init: Init = "xavier"


class _Encoder(Part):
    """Recurrent cells, or a transformer of several heads."""

    encoder: Literal["gru", "lstm", "transformer"] = "gru"
    layers: int = Field(1, ge=1, le=100)
    width: Width = 64
    heads: int = Field(4, ge=1, le=256)

    @model_validator(mode="after")
    def _heads_are_used(self) -> Self:
        if self.encoder == "transformer":
            _check_heads(self.width, self.heads)
        elif "heads" in self.model_fields_set:
            sentence = f"heads are given, but encoder {self.encoder!r} has none; write encoder transformer"
            raise BrokenRules([("heads", sentence), ("encoder", sentence)])
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A dump is a valid spec again: heads that are not used are not in it.
        return {key: value for key, value in plain(self).items() if key != "heads" or self.encoder == "transformer"}


class Forecast(_Encoder):
    """The next steps of a series from those before, each window in units of its own mean and deviation."""

    takes: ClassVar = Takes(("series",), one=True, targets=("number",), cut=True)
    type: Literal["forecast"]
    dropout: Dropout = 0.0
    init: Init = "xavier"


class Embeddings(Part):
    """Initial token embeddings: those of a Hugging Face folder, averaged over the pieces it has for each token."""

    path: str = Field(min_length=1)
    width: Width


class Transformer(_Heads):
    """A pre-norm encoder over tokens with learned positions; the mean over the tokens is classified."""

    takes: ClassVar = Takes(("text",), one=True, cut=True)
    type: Literal["transformer"]
    embeddings: Embeddings | None = None
    layers: int = Field(2, ge=1, le=200)
    dropout: Dropout = 0.1
    init: Init = "xavier"


class Seq2Seq(_Heads):
    """From a text to a sequence: a bidirectional GRU with attention, or a transformer; answered by beam search."""

    takes: ClassVar = Takes(("text",), one=True, targets=("text",), cut=True)
    type: Literal["seq2seq"]
    network: Literal["gru", "transformer"] = "transformer"
    layers: int = Field(2, ge=1, le=100)
    beam: int = Field(1, ge=1, le=64)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    dropout: Dropout = 0.1
    init: Init = "xavier"

    @model_validator(mode="after")
    def _both_directions_fit(self) -> Self:
        if self.network == "gru" and self.width % 2:
            raise BrokenRules([("width", f"{self.width} is odd; the encoder's two directions have half of it each")])
        return self


class Ctc(_Encoder):
    """From sound, or a series, to a text in its order: convolutions, an encoder, and a token or none for each frame."""

    takes: ClassVar = Takes(("audio", "series"), one=True, targets=("text",), cut=True)
    type: Literal["ctc"]
    halvings: int = Field(1, ge=0, le=8)
    layers: int = Field(2, ge=1, le=100)
    width: Width = 128
    dropout: Dropout = 0.1
    init: Init = "xavier"


ImportPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=512)]


class Custom(Part):
    """A person's own module. `build` and `loss` name a class or function as `package.module:name`."""

    takes: ClassVar = Takes(("number", "category", "image", "text", "series", "audio"))
    type: Literal["custom"]
    build: ImportPath
    loss: ImportPath | None = None
    args: dict[str, JsonValue] = {}


Model = Annotated[
    Linear | Mlp | Cnn | ConvAttention | Rnn | Forecast | Transformer | Seq2Seq | Ctc | Custom,
    Field(discriminator="type"),
]


def taking(kind: str) -> list[str]:
    """The model types that take an input of that type."""
    return [_type_of(each) for each in _types() if kind in each.takes.types]


def learning(kind: str) -> list[str]:
    """The model types that learn a target of that type."""
    return [_type_of(each) for each in _types() if kind in each.takes.targets]


def _types() -> tuple[Any, ...]:
    return get_args(get_args(Model)[0])


def _type_of(part: Any) -> str:
    return str(get_args(part.model_fields["type"].annotation)[0])
