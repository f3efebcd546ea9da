"""Images: decoded, brought to one size, scaled to 0..1 and normalised by the mean and deviation of each channel."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tidegate.errors import RequestError
from tidegate.signature import TensorSpec
from tidegate.spec.data import ImageInput
from tidegate.transforms.base import Array, Feature, State, fits, merged_moments, moments, problems
from tidegate.transforms.number import fixed_lists, is_list, to_numbers

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000
"""Larger encoded images are refused before they are decoded."""


class ImageColumn:
    """Reads encoded images, or (nested) lists of numbers. Canonical: float32 `[rows, height * width * channels]`."""

    def __init__(self, spec: ImageInput) -> None:
        self.spec = spec
        self.shape = (spec.size[0], spec.size[1], spec.channels)
        self.row_bytes = 4 * int(np.prod(self.shape))

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            values, found = self._decoded(column)
        else:
            values, found = to_numbers(flat_lists(column), int(np.prod(self.shape)))
        outside = ~((values >= 0) & (values <= self.spec.max_value)).all(axis=1) & fits(found)
        found[outside] = f"a pixel lies outside 0..{self.spec.max_value:g}"
        return fixed_lists(values.astype(np.float32)), found

    def _decoded(self, column: pa.Array) -> tuple[Array, Array]:
        values, found = np.zeros((len(column), int(np.prod(self.shape)))), problems(len(column))
        for row, item in enumerate(column.to_pylist()):
            try:
                values[row] = decoded(item, self.shape, self.spec.max_value).reshape(-1)
            except ValueError as error:
                found[row] = str(error)
        return values, found

    def partial(self, values: Array) -> State:
        return moments(values.reshape(-1, self.spec.channels).astype(np.float64) / self.spec.max_value)

    def fit(self, parts: Sequence[State]) -> State:
        _, mean, deviation = merged_moments(parts)
        return {
            "type": "image",
            "shape": list(self.shape),
            "max_value": self.spec.max_value,
            "mean": mean.tolist(),
            "deviation": np.where(deviation > 0, deviation, 1.0).tolist(),
        }


class ImageTransform:
    """float32 `[rows, channels * height * width]`, channels first."""

    def __init__(self, name: str, state: State) -> None:
        self.height, self.width, self.channels = (int(size) for size in state["shape"])
        self.max_value = float(state["max_value"])
        self.mean, self.deviation = (np.asarray(state[key], np.float32) for key in ("mean", "deviation"))
        self.feature = Feature(name, "image", (self.channels, self.height, self.width))
        self.tensor = TensorSpec(name, "FP32", (-1, self.height, self.width, self.channels), "image")

    def apply(self, values: Array) -> dict[str, Array]:
        if values.dtype == object:
            values = self._seen(values)
        pixels = np.asarray(values, np.float32).reshape(-1, self.height, self.width, self.channels)
        if not ((pixels >= 0) & (pixels <= self.max_value)).all():
            raise RequestError(f"{self.feature.name} holds a pixel outside 0..{self.max_value:g}")
        scaled = (pixels / np.float32(self.max_value) - self.mean) / self.deviation
        return {self.feature.name: np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)}

    def _seen(self, values: Array) -> Array:
        """Pixels of encoded images, as `read` has them of a source."""
        rows = []
        for row, data in enumerate(values.tolist()):
            try:
                rows.append(decoded(data, (self.height, self.width, self.channels), self.max_value))
            except ValueError as error:
                raise RequestError(f"{self.feature.name}, row {row}: {error}") from None
        return np.stack(rows)

    @property
    def black(self) -> Array:
        """What a pixel of value 0 becomes: float32 `[channels]`."""
        return (np.float32(0) - self.mean) / self.deviation

    def example(self, rows: int) -> Array:
        return np.zeros((rows, self.height, self.width, self.channels), np.float32)


def decoded(data: bytes | None, shape: tuple[int, int, int], max_value: float) -> Array:
    """Pixels float64 `[height, width, channels]` from 0 to `max_value`. Raises ValueError, in words."""
    from PIL import Image, UnidentifiedImageError

    if data is None:
        raise ValueError("the image is missing")
    try:
        with _opened(data) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"the image has {image.width} x {image.height} pixels; the limit is {MAX_PIXELS}")
            converted = image.convert("L" if shape[2] == 1 else "RGB")
            resized = converted.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    except Image.DecompressionBombError:
        raise ValueError(f"the image has too many pixels; the limit is {MAX_PIXELS}") from None
    except (UnidentifiedImageError, OSError, SyntaxError):
        raise ValueError("the bytes are no readable image (PNG, JPEG, GIF, BMP or WebP)") from None
    return np.asarray(resized, np.float64).reshape(shape) * (max_value / 255.0)


def _opened(data: bytes) -> Image:
    """The image, not decoded yet. Raises what Pillow raises."""
    from PIL import Image

    with warnings.catch_warnings():
        # Of many pixels: the limit here is lower than the one Pillow warns at.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "GIF", "BMP", "WEBP"))


def flat_lists(column: pa.Array) -> pa.Array:
    """Lists of lists of numbers as lists of numbers. Rows that are not rectangular show by their count."""
    if not (is_list(column.type) and is_list(column.type.value_type)):
        return column
    return pa.array(
        [None if row is None else np.asarray(_leaves(row), dtype=object).tolist() for row in column.to_pylist()]
    )


def _leaves(value: object) -> list[object]:
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]
