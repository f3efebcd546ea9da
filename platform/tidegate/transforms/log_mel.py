"""Log-mel spectra: the energy of sound in bands as wide as the ear hears them, in frames of 25 ms, one each 10 ms.

The mel scale is O'Shaughnessy's (1987), m = 2595 log10(1 + f / 700), and the bands are the triangles of Davis and
Mermelstein (1980, figure 1), as HTK has them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tidegate.transforms.base import Array

FRAME_S, HOP_S = 0.025, 0.010
SILENCE = 1e-8
"""Added to the energy of a band, of samples between -1 and 1: no sound at all has no logarithm."""


def frames_of(samples: int, sampling_rate: int) -> int:
    """How many frames so many samples have."""
    return 1 + samples // round(HOP_S * sampling_rate)


def log_mel(samples: Array, sampling_rate: int, mels: int) -> Array:
    """Samples float32 `[samples]` from -1 to 1 -> float32 `[frames, mels]`. A frame is centred on its time."""
    window, hop = round(FRAME_S * sampling_rate), round(HOP_S * sampling_rate)
    size = 2 ** math.ceil(math.log2(window))
    before = window // 2
    padded = np.pad(np.asarray(samples, np.float32), (before, window - before))
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
    spectrum = np.fft.rfft(sliding_window_view(padded, window)[::hop] * hann, size, axis=1)
    energy = (spectrum.real**2 + spectrum.imag**2) @ _bands(sampling_rate, size, mels)
    found: Array = np.log(energy + np.float32(SILENCE)).astype(np.float32)
    return found


@lru_cache(maxsize=8)
def _bands(sampling_rate: int, size: int, mels: int) -> Array:
    """The weight of each frequency of the spectrum in each band: `[size / 2 + 1, mels]`."""
    highest = 2595 * math.log10(1 + sampling_rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, mels + 2) / 2595) - 1)
    frequencies = np.linspace(0, sampling_rate / 2, size // 2 + 1)[:, None]
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    bands: Array = np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)
    return bands
