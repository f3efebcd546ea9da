"""Images: decoded, brought to one size, scaled to 0..1 and normalised by the mean and deviation of each channel."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tidegate.errors import RequestError
from tidegate.signature import TensorSpec
from tidegate.spec.data import ImageInput
from tidegate.transforms.arrow import files, fixed_lists, is_binary
from tidegate.transforms.base import Array, Feature, State, fits, merged_moments, moments, problems
from tidegate.transforms.number import shaped_numbers

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000
"""Larger encoded images are refused before they are decoded, and so are requests whose images together have more: a few
kilobytes may tell of as many."""
LYING = 5
"""Orientations from here on have an image's width as its height."""
ORIENTATION = 0x0112
"""The EXIF tag that tells how a camera was held (CIPA DC-008, 4.6.4)."""
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""What brings an image upright, of Pillow's `Transpose`, by orientation."""


class ImageColumn:
    """Reads encoded images, structs that have them as `bytes`, or (nested) lists of numbers.

    Canonical: float32 `[rows, height * width * channels]`.
    """

    def __init__(self, spec: ImageInput) -> None:
        self.spec = spec
        self.shape = (spec.size[0], spec.size[1], spec.channels)
        self.row_bytes = 4 * int(np.prod(self.shape))

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        column = files(column)
        if is_binary(column.type):
            values, found = self._decoded(column)
        else:
            values, found = shaped_numbers(column, self.shape)
        outside = ~((values >= 0) & (values <= self.spec.max_value)).all(axis=1) & fits(found)
        found[outside] = f"a pixel lies outside 0..{self.spec.max_value:g}"
        return fixed_lists(values.astype(np.float32)), found

    def _decoded(self, column: pa.Array) -> tuple[Array, Array]:
        values, found = np.zeros((len(column), int(np.prod(self.shape))), np.float32), problems(len(column))
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
        rows, room = [], MAX_PIXELS
        for row, data in enumerate(values.tolist()):
            try:
                with opened(data) as image:
                    room -= image.width * image.height
                    if room < 0:
                        raise RequestError(
                            f"the images of {self.feature.name} have more than {MAX_PIXELS} pixels together",
                            remedy="send fewer at once, or smaller ones",
                        )
                    rows.append(seen(image, (self.height, self.width, self.channels), self.max_value))
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
    """`seen` of an image's file. Raises ValueError, in words."""
    with opened(data) as image:
        return seen(image, shape, max_value)


@contextmanager
def opened(data: bytes | None) -> Iterator[Image]:
    """An image whose pixels are not decoded yet. Raises ValueError, in words, also of what goes wrong within."""
    from PIL import Image, UnidentifiedImageError

    if data is None:
        raise ValueError("the image is missing")
    try:
        with warnings.catch_warnings():
            # Of many pixels, for which the limit here is lower, and of damaged tags.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "GIF", "BMP", "WEBP"))
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"the image has {image.width} x {image.height} pixels; the limit is {MAX_PIXELS}")
            yield image
    except Image.DecompressionBombError:
        raise ValueError(f"the image has too many pixels; the limit is {MAX_PIXELS}") from None
    except (UnidentifiedImageError, OSError, SyntaxError):
        raise ValueError("the bytes are no readable image (PNG, JPEG, GIF, BMP or WebP)") from None


def orientation(image: Image) -> int:
    """1 to 8, as EXIF counts them; 1 is upright."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged tags raise what they will, and the pixels may be whole
        return 1
    return told if isinstance(told, int) and 1 <= told <= 8 else 1


def seen(image: Image, shape: tuple[int, int, int], max_value: float) -> Array:
    """Pixels float64 `[height, width, channels]` from 0 to `max_value`, as a person sees them.

    Upright where a camera told how it was held, on white where there is transparency, and of 16 bits the upper 8.
    """
    from PIL import Image

    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    # Before its tags are looked for: what is damaged must not pass as an image without any.
    image.load()
    turned = orientation(image)
    if image.mode.startswith("I"):
        # Pillow would cut off at 255 what 16 bits hold.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    converted = image.convert("RGBA" if image.has_transparency_data else mode)
    size = (height, width) if turned >= LYING else (width, height)
    resized = converted.resize(size, Image.Resampling.BILINEAR)
    if resized.mode == "RGBA":
        resized = Image.alpha_composite(Image.new("RGBA", size, "white"), resized).convert(mode)
    upright = resized.transpose(Image.Transpose(TURNS[turned])) if turned in TURNS else resized
    return np.asarray(upright, np.float64).reshape(shape) * (max_value / 255.0)
