"""The data of a run: where it is, what its columns mean, and how it is split."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer, model_validator

from tidegate.spec.base import BrokenRules, Part

Column = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^_]|^_[^_]")]
"""A column of the source. Names that begin with two underscores are kept for Tidegate's own columns."""

PROBABILITIES = "probabilities"
"""What a classifier answers beside the class."""
TABLES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
FORMATS = (
    TABLES
    | {f"{end}.gz": kind for end, kind in TABLES.items() if kind != "parquet"}
    | dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp"), "images")
    | dict.fromkeys((".wav", ".flac", ".ogg", ".mp3"), "audio")
    | {".txt": "text"}
)
"""The format of a file by its ending, in lower case."""
WRITTEN = "parquet, csv, jsonl, images, audio or text"


def format_of(path: str) -> str:
    """The format that the ending of a path or URI tells. Empty when it tells none."""
    named = (path.partition("?")[0] if "://" in path else path).lower()
    return next((kind for ending, kind in FORMATS.items() if named.endswith(ending)), "")


class Source(Part):
    """Files to read: path, directory, glob or URI. Relative paths start at the spec file; `$VARIABLES` are filled in.

    `images`, `audio` and `text` are a folder for each class with files in it: columns `image`, `audio` or `text`, and
    `label` and `path`.
    """

    path: str = Field(min_length=1)
    format: Literal["parquet", "csv", "jsonl", "images", "audio", "text"] | None = None

    def resolved_format(self) -> str:
        """The format given, else the one the path's ending tells. Empty when neither does."""
        return self.format or format_of(self.path)

    @model_validator(mode="after")
    def _format_is_known(self) -> Source:
        if not self.resolved_format():
            raise BrokenRules([("format", f"cannot be told from the path {self.path!r}; write {WRITTEN}")])
        return self


class NumberInput(Part):
    """A number a row, or a list of `length` numbers."""

    type: Literal["number"]
    length: int = Field(1, ge=1, le=1_000_000)
    scale: Literal["standard", "none"] = "standard"
    missing: Literal["refuse", "mean"] = "refuse"


class CategoryInput(Part):
    """One of a set of values, learned from the training split. `missing: empty` takes a gap for an empty string."""

    type: Literal["category"]
    unknown: Literal["refuse", "bucket"] = "refuse"
    missing: Literal["refuse", "empty"] = "refuse"


class TextInput(Part):
    """Text of any length; what exceeds `max_length` tokens is cut."""

    type: Literal["text"]
    tokenizer: Literal["word", "character", "bpe"] = "bpe"
    vocab_size: int = Field(8000, ge=300, le=1_000_000)
    max_length: int = Field(256, ge=1, le=100_000)


class SeriesInput(Part):
    """A series of any length up to `max_length` steps, each of `channels` numbers: a list, or a list of lists."""

    type: Literal["series"]
    max_length: int = Field(ge=1, le=100_000)
    channels: int = Field(1, ge=1, le=10_000)
    scale: Literal["standard", "none"] = "standard"


class AudioInput(Part):
    """A sound of at most `max_seconds`: an encoded file (WAV, FLAC, OGG, MP3), or samples; as log-mel spectra."""

    type: Literal["audio"]
    max_seconds: float = Field(gt=0, le=3600)
    sampling_rate: int = Field(16_000, ge=4000, le=192_000)
    mels: int = Field(40, ge=1, le=256)


class ImageAugment(Part):
    """Changes drawn anew for each row and epoch, in training only: a shift by up to so many pixels, a mirror image."""

    shift: int = Field(0, ge=0, le=1000)
    flip: bool = False


class ImageInput(Part):
    """An image: encoded (PNG, JPEG) or a list of height x width x channels numbers from 0 to `max_value`."""

    type: Literal["image"]
    size: Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=2, max_length=2)]
    channels: Literal[1, 3] = 1
    max_value: float = Field(255.0, gt=0)
    augment: ImageAugment | None = None

    @model_validator(mode="after")
    def _shift_leaves_something(self) -> ImageInput:
        if self.augment and self.augment.shift >= min(self.size):
            sentence = f"a shift of {self.augment.shift} pixels can leave nothing of an image of {self.size}"
            raise BrokenRules([("augment.shift", sentence), (f"size[{self.size.index(min(self.size))}]", sentence)])
        return self


Input = Annotated[
    NumberInput | CategoryInput | TextInput | SeriesInput | AudioInput | ImageInput, Field(discriminator="type")
]


class CategoryTarget(Part):
    """The column to predict: one of a set of values, which makes a classifier."""

    column: Column
    type: Literal["category"]

    @model_validator(mode="after")
    def _is_no_other_answer(self) -> CategoryTarget:
        if self.column == PROBABILITIES:
            raise BrokenRules([("column", f"a classifier answers with {PROBABILITIES} beside the class; rename it")])
        return self


class NumberTarget(Part):
    """The column to predict: a number a row, or a list of `length` numbers, which makes a regressor."""

    column: Column
    type: Literal["number"]
    length: int = Field(1, ge=1, le=100_000)


class TextTarget(Part):
    """The column to predict: a text, written token by token. One of more than `max_length` tokens is refused."""

    column: Column
    type: Literal["text"]
    tokenizer: Literal["word", "character", "bpe"] = "bpe"
    vocab_size: int = Field(8000, ge=300, le=1_000_000)
    max_length: int = Field(256, ge=1, le=100_000)


Target = Annotated[CategoryTarget | NumberTarget | TextTarget, Field(discriminator="type")]


class Split(Part):
    """How rows are divided: by fractions (stratified by a column if asked), or as a column of the source says."""

    train: float = Field(0.8, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    stratify: Column | None = None
    column: Column | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> Split:
        total = self.train + self.validation + self.test
        rules = []
        if abs(total - 1) > 1e-6:
            named = ", ".join(f"{part} {getattr(self, part)}" for part in ("train", "validation", "test"))
            rules += [
                (p, f"{named} add up to {total:g}; make them add up to 1") for p in ("train", "validation", "test")
            ]
        given = [key for key in type(self).model_fields if key in self.model_fields_set and key != "column"]
        if self.column is not None and given:
            sentence = "a column of the source says the split; leave out the fractions and stratify"
            rules += [(key, sentence) for key in ("column", *given)]
        if rules:
            raise BrokenRules(rules)
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A dump is a valid spec again: what a split column leaves no room for is not in it.
        return {"column": self.column} if self.column is not None else dict(plain(self))


class InvalidRows(Part):
    """What to do with rows that do not fit: refuse the data, or drop up to `max_fraction` of it."""

    action: Literal["refuse", "drop"] = "refuse"
    max_fraction: float = Field(0.01, ge=0, le=1)


class Data(Part):
    """The data of a run."""

    source: Source
    inputs: Annotated[dict[Column, Input], Field(min_length=1)]
    target: Target
    split: Split = Split()
    invalid_rows: InvalidRows = InvalidRows()
    feed: Literal["auto", "ray_data", "local"] = "auto"

    @property
    def has_row_work(self) -> bool:
        """Whether rows are worked on after `prepare`, while training goes on."""
        return any(isinstance(column, ImageInput) and column.augment for column in self.inputs.values())

    @property
    def resolved_feed(self) -> Literal["ray_data", "local"]:
        """The feed asked for; `auto` spreads row-wise work over the cluster and reads what is ready locally."""
        if self.feed != "auto":
            return self.feed
        return "ray_data" if self.has_row_work else "local"

    @model_validator(mode="after")
    def _target_is_no_input(self) -> Data:
        if self.target.column in self.inputs:
            sentence = f"{self.target.column!r} is both an input and the target; a model would just copy it"
            raise BrokenRules([("target.column", sentence), (f"inputs.{self.target.column}", sentence)])
        return self
