"""Augmentation: images shifted and mirrored by chance, in training only.

What happens to a row is drawn from the seed, the step, the shard and the column: the same bits whichever feed brings
the shard and however many workers there are. Only raw words of Philox are used, which never change between releases of
NumPy (NEP 19).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tidegate.spec.data import Data, ImageAugment, ImageInput
from tidegate.transforms.base import Array
from tidegate.transforms.image import ImageTransform

if TYPE_CHECKING:
    from tidegate.data.prepared import Prepared


class AugmentedImage:
    """Shifts and mirrors the prepared images of one column."""

    def __init__(self, spec: ImageAugment, transform: ImageTransform) -> None:
        self.spec, self.shape, self.black = spec, transform.feature.shape, transform.black

    def __call__(self, images: Array, draws: Array) -> Array:
        """`images` `[rows, channels * height * width]`, changed as the random words `draws` `[rows, 3]` say."""
        _, height, width = self.shape
        pictures = images.reshape(-1, *self.shape)
        # A shift beyond the picture leaves nothing of it either way.
        up, left = min(self.spec.shift, height), min(self.spec.shift, width)
        padded = self._padded(pictures, up, left)
        inner = padded[:, :, up : up + height, left : left + width]
        inner[...] = pictures
        if self.spec.flip:
            mirrored = draws[:, 0] % 2 == 1
            inner[mirrored] = pictures[mirrored, :, :, ::-1]
        cuts = sliding_window_view(padded, (height, width), axis=(2, 3))
        down, right = (self._shifts(draws[:, place]) for place in (1, 2))
        moved = cuts[np.arange(len(cuts)), :, up - down.clip(-up, up), left - right.clip(-left, left)]
        return moved.reshape(images.shape)

    def _padded(self, pictures: Array, up: int, left: int) -> Array:
        rows, channels, height, width = pictures.shape
        padded = np.empty((rows, channels, height + 2 * up, width + 2 * left), pictures.dtype)
        padded[:] = self.black[:, None, None]
        return padded

    def _shifts(self, words: Array) -> Array:
        """From `-shift` to `shift` pixels."""
        return (words % (2 * self.spec.shift + 1)).astype(np.int64) - self.spec.shift


@dataclass(frozen=True)
class RowWork:
    """What is done to the rows of a shard each time they are trained on. Travels to any machine by pickle."""

    images: Mapping[str, AugmentedImage]
    seed: int

    @classmethod
    def of(cls, data: Data, prepared: Prepared, seed: int) -> RowWork | None:
        """The row-wise work that a spec asks for. None when it asks for none."""
        images = {
            name: AugmentedImage(spec.augment, transform)
            for name, transform in prepared.columns.transforms.items()
            if isinstance(spec := data.inputs[name], ImageInput) and spec.augment
            if isinstance(transform, ImageTransform)
        }
        return cls(images, seed) if images else None

    def __call__(self, arrays: Mapping[str, Array], *, step: int, shard: int) -> dict[str, Array]:
        """The arrays of all rows of `shard` of the batch of `step`, images augmented; those given stay as they are."""
        return dict(arrays) | {
            name: image(arrays[name], _draws(f"{self.seed}/{step}/{shard}/{name}", len(arrays[name])))
            for name, image in self.images.items()
        }


def _draws(name: str, rows: int) -> Array:
    """Random 64-bit words `[rows, 3]`, a pure function of the name."""
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64)).random_raw(3 * rows).reshape(rows, 3)
