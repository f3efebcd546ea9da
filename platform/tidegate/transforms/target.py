"""What a model is to predict. Each type of target has a file: target_category.py, target_number.py, target_text.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from tidegate.metrics import Task
from tidegate.signature import TensorSpec
from tidegate.spec.data import CategoryTarget, NumberTarget, Target
from tidegate.transforms.base import Array, Feature, State
from tidegate.transforms.target_category import CategoryTargetColumn, CategoryTargetTransform
from tidegate.transforms.target_number import NumberTargetColumn, NumberTargetTransform
from tidegate.transforms.target_text import TextTargetColumn, TextTargetTransform


class TargetColumn(Protocol):
    """Reads the target's column. Made from the spec alone."""

    row_bytes: int
    """Bytes of the model's array for one row."""

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        """Canonical values as an Arrow array, and an object array `[rows]` of problems (None where there is none)."""

    def partial(self, values: Array) -> State:
        """What `fit` needs to know of some rows; JSON-able."""

    def fit(self, parts: Sequence[State]) -> State:
        """The state, from the parts of all files of the training split in their order."""


class TargetTransform(Protocol):
    """Between the user's target and what the model is trained on. Made from the state alone."""

    column: str
    task: Task
    classes: list[str]
    feature: Feature
    """What a model learns: classes or tokens, by their number, or a shape of numbers."""
    loss_scale: float
    """What turns the training loss into the user's unit."""

    def apply(self, values: Array) -> Array:
        """What a model is trained on. KeyError for a class never seen, RequestError for a value it cannot take."""

    def unscaled(self, outputs: Any) -> Any:
        """Raw model outputs in the user's unit. NumPy or torch."""

    def tensors(self) -> tuple[TensorSpec, ...]:
        """The outputs of an endpoint."""

    def answers(self, outputs: Array) -> dict[str, Array]:
        """Raw model outputs -> what an endpoint answers, by output name."""


def target_column(spec: Target) -> TargetColumn:
    """The reader of the target of a spec."""
    if isinstance(spec, CategoryTarget):
        return CategoryTargetColumn()
    return NumberTargetColumn(spec) if isinstance(spec, NumberTarget) else TextTargetColumn(spec)


def target_transform(column: str, state: State) -> TargetTransform:
    """The transform of a fitted state."""
    if state["type"] == "category":
        return CategoryTargetTransform(column, state)
    return NumberTargetTransform(column, state) if state["type"] == "number" else TextTargetTransform(column, state)
