"""Log-mel spectra: the energy of sound in bands as wide as the ear hears them, in frames of 25 ms, one each 10 ms.

The mel scale is O'Shaughnessy's (1987), m = 2595 log10(1 + f / 700), and the bands are the triangles of Davis and
Mermelstein (1980, figure 1), as HTK has them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

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
    signal = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
    spectrum = torch.stft(
        signal,
        size,
        hop,
        window,
        torch.hann_window(window),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    energy = spectrum.abs().square().T @ _bands(sampling_rate, size, mels)
    found: Array = (energy + SILENCE).log().numpy()
    return found


@lru_cache(maxsize=8)
def _bands(sampling_rate: int, size: int, mels: int) -> Tensor:
    """The weight of each frequency of the spectrum in each band: `[size / 2 + 1, mels]`."""
    highest = 2595 * math.log10(1 + sampling_rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, mels + 2) / 2595) - 1)
    frequencies = np.linspace(0, sampling_rate / 2, size // 2 + 1)[:, None]
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    return torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None).astype(np.float32))
