"""Which transform belongs to which kind of column, and a whole table's worth of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tidegate.spec.data import AudioInput, CategoryInput, Data, ImageInput, Input, NumberInput, SeriesInput, TextInput
from tidegate.transforms.audio import AudioColumn, AudioTransform
from tidegate.transforms.base import Array, Canonical, State, Transform
from tidegate.transforms.category import CategoryColumn, CategoryTransform
from tidegate.transforms.image import ImageColumn, ImageTransform
from tidegate.transforms.number import NumberColumn, NumberTransform
from tidegate.transforms.series import SeriesColumn, SeriesTransform
from tidegate.transforms.target import target_column
from tidegate.transforms.text import TextColumn, TextTransform


def canonical(spec: Input) -> Canonical:
    """The reader of a column of the spec."""
    if isinstance(spec, NumberInput):
        return NumberColumn(spec)
    if isinstance(spec, CategoryInput):
        return CategoryColumn(spec)
    if isinstance(spec, TextInput):
        return TextColumn(spec)
    if isinstance(spec, SeriesInput):
        return SeriesColumn(spec)
    if isinstance(spec, AudioInput):
        return AudioColumn(spec)
    if isinstance(spec, ImageInput):
        return ImageColumn(spec)
    raise ValueError(f"no reader for {type(spec).__name__}")


def row_bytes(data: Data) -> int:
    """Bytes of a prepared row. Follows from the spec alone, so that files are cut alike everywhere."""
    own = 8 + target_column(data.target).row_bytes  # the row's number and the target
    return own + sum(canonical(column).row_bytes for column in data.inputs.values())


def transform(name: str, state: State) -> Transform:
    """The transform of a fitted state."""
    kinds: dict[str, Callable[[str, State], Transform]] = {
        "number": NumberTransform,
        "category": CategoryTransform,
        "text": TextTransform,
        "series": SeriesTransform,
        "audio": AudioTransform,
        "image": ImageTransform,
    }
    if state["type"] not in kinds:
        raise ValueError(f"no transform for {state['type']!r}")
    return kinds[state["type"]](name, state)


class Columns:
    """All inputs of a model: canonical arrays by column in, model arrays by name out."""

    def __init__(self, states: Mapping[str, State]) -> None:
        self.transforms = {name: transform(name, state) for name, state in states.items()}

    def apply(self, values: Mapping[str, Array]) -> dict[str, Array]:
        return {
            key: array for name, column in self.transforms.items() for key, array in column.apply(values[name]).items()
        }

    @property
    def any_length(self) -> frozenset[str]:
        """Those whose rows end where NaN begins."""
        return frozenset(name for name, column in self.transforms.items() if isinstance(column, SeriesTransform))

    def example(self, rows: int) -> dict[str, Array]:
        return {name: column.example(rows) for name, column in self.transforms.items()}
