"""Telephone numbers as the tones that dialling them makes (ITU-T Q.23): sounds that say a text."""

from __future__ import annotations

import io
import random

import numpy as np
import pyarrow as pa

from tidegate.transforms.base import Array

RATE = 8000
LOW, HIGH = (697, 770, 852, 941), (1209, 1336, 1477)
KEYS = "123456789*0#"
TONE_S, PAUSE_S = 0.08, 0.05


def dialled(keys: str, rate: int = RATE) -> Array:
    """Samples float32 from -1 to 1."""
    time = np.arange(round(TONE_S * rate)) / rate
    pause = np.zeros(round(PAUSE_S * rate))
    parts = [pause]
    for key in keys:
        row, column = divmod(KEYS.index(key), 3)
        parts += [0.4 * (np.sin(2 * np.pi * LOW[row] * time) + np.sin(2 * np.pi * HIGH[column] * time)), pause]
    samples: Array = np.concatenate(parts).astype(np.float32)
    return samples


def encoded(samples: Array, rate: int = RATE, kind: str = "WAV") -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def numbers(rows: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(KEYS, k=draw.randint(2, 6))) for _ in range(rows)]


def table(rows: int, seed: int = 0) -> pa.Table:
    """Columns `sound`, bytes of WAV files, and `keys`."""
    keys = numbers(rows, seed)
    return pa.table({"sound": pa.array([encoded(dialled(each)) for each in keys], pa.binary()), "keys": keys})
