"""Sound: decoded, brought to one rate and one channel, and to log-mel spectra that are standardised by band."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tidegate.content import RATES, Sound, objects
from tidegate.errors import MissingError, RequestError
from tidegate.signature import TensorSpec
from tidegate.spec.data import AudioInput
from tidegate.transforms.arrow import fixed_lists
from tidegate.transforms.base import Array, Feature, State, moments, problems
from tidegate.transforms.log_mel import frames_of, log_mel
from tidegate.transforms.series import SeriesTransform, standardising

BLOCK_SAMPLES = 65_536
UNTOLD = 2**62
"""What soundfile has for the number of samples where a file tells none."""
LOUDEST = 8.0
"""Recordings go a little beyond 1; samples that were not brought to -1 to 1 go far beyond."""


class AudioColumn:
    """Reads encoded sounds, lists of samples, or structs with `bytes` or with `array` and `sampling_rate`.

    Canonical: log-mel spectra float32 `[rows, frames * mels]`, frame by frame, NaN after a sound's end.
    """

    def __init__(self, spec: AudioInput) -> None:
        self.spec = spec
        self._spectra = Spectra(spec.sampling_rate, spec.mels, spec.max_seconds)
        self.row_bytes = 4 * self._spectra.frames * spec.mels + 4

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        found = problems(len(column))
        rows: list[Array | None] = [None] * len(column)
        for row, item in enumerate(column.to_pylist()):
            try:
                rows[row] = self._spectra.of(_taken(item))
            except ValueError as error:
                found[row] = str(error)
        return fixed_lists(self._spectra.padded(rows).reshape(len(column), -1)), found

    def partial(self, values: Array) -> State:
        return moments(values.reshape(-1, self.spec.mels).astype(np.float64))

    def fit(self, parts: Sequence[State]) -> State:
        return {
            "type": "audio",
            "max_length": self._spectra.frames,
            "channels": self.spec.mels,
            "sampling_rate": self.spec.sampling_rate,
            "max_seconds": self.spec.max_seconds,
            **standardising(parts),
        }


class AudioTransform:
    """Standardised spectra float32 `[rows, max_length * mels]`, 0 after the end; and the number of frames.

    An endpoint takes encoded sounds, or samples with their rate.
    """

    def __init__(self, name: str, state: State) -> None:
        self._series = SeriesTransform(name, state)
        self._spectra = Spectra(int(state["sampling_rate"]), int(state["channels"]), float(state["max_seconds"]))
        self.feature: Feature = self._series.feature
        self.tensor = TensorSpec(name, "BYTES", (-1,), "audio", self._spectra.sampling_rate)

    def apply(self, values: Array) -> dict[str, Array]:
        return self._series.apply(self._heard(values) if values.dtype == object else values)

    def _heard(self, values: Array) -> Array:
        rows = []
        for row, item in enumerate(values.tolist()):
            try:
                rows.append(self._spectra.of(item))
            except ValueError as error:
                raise RequestError(f"{self.feature.name}, row {row}: {error}", expected=EXPECTED) from None
        return self._spectra.padded(rows)

    def example(self, rows: int) -> Array:
        # As long as it may be: a model may be slow at that.
        rate = self._spectra.sampling_rate
        return objects([Sound(np.zeros(int(self._spectra.max_seconds * rate), np.float32), rate)] * rows)


EXPECTED = "WAV, FLAC, OGG or MP3, or samples from -1 to 1"


class Spectra:
    """From one sound to its log-mel spectrum `[frames, mels]`."""

    def __init__(self, sampling_rate: int, mels: int, max_seconds: float) -> None:
        self.sampling_rate, self.mels, self.max_seconds = sampling_rate, mels, max_seconds
        # A sound of that length at another rate may have a sample more after it was brought to this one.
        self.frames = frames_of(int(max_seconds * sampling_rate) + 1, sampling_rate)

    def of(self, sound: bytes | Sound | None) -> Array:
        """Raises ValueError, in words, for what is no sound or too long."""
        if sound is None:
            raise ValueError("the sound is missing")
        samples, rate = decoded(sound, self.max_seconds) if isinstance(sound, bytes) else sound
        rate = rate or self.sampling_rate
        if rate not in RATES:
            raise ValueError(f"the sound has {rate} samples a second, not {RATES[0]} to {RATES[-1]}")
        if not len(samples):
            raise ValueError("the sound holds no sample")
        if len(samples) > self.max_seconds * rate:
            raise ValueError(_too_long(len(samples) / rate, self.max_seconds))
        if not (np.abs(samples) <= LOUDEST).all():
            raise ValueError("the sound holds a sample far outside -1 to 1, or none at all")
        if rate != self.sampling_rate:
            samples = _libraries()[1].resample(samples, rate, self.sampling_rate)
        return log_mel(samples, self.sampling_rate, self.mels)

    def padded(self, rows: Sequence[Array | None]) -> Array:
        """Spectra side by side, float32 `[rows, frames, mels]`, NaN after their end."""
        found = np.full((len(rows), self.frames, self.mels), np.nan, np.float32)
        for row, spectrum in enumerate(rows):
            if spectrum is not None:
                found[row, : len(spectrum)] = spectrum[: self.frames]
        return found


def decoded(data: bytes, max_seconds: float) -> Sound:
    """The mean of the channels of an encoded sound. Raises ValueError; what is too long is not decoded."""
    soundfile, _ = _libraries()
    try:
        # Infinite samples are refused with those that are far too loud.
        with soundfile.SoundFile(io.BytesIO(data)) as file, np.errstate(all="ignore"):
            if file.frames >= UNTOLD:
                raise ValueError("the sound does not tell how long it is: encode it again, to a file and not to a pipe")
            if file.frames > max_seconds * file.samplerate:
                raise ValueError(_too_long(file.frames / file.samplerate, max_seconds))
            # Block by block: a header may tell of more samples than there are, and memory would be taken for them.
            blocks = [block.mean(axis=1) for block in file.blocks(BLOCK_SAMPLES, dtype="float32", always_2d=True)]
            return Sound(np.concatenate([np.zeros(0, np.float32), *blocks]), int(file.samplerate))
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        raise ValueError("the bytes are no readable sound (WAV, FLAC, OGG or MP3)") from None


def encoded(item: Any, sampling_rate: int) -> bytes:
    """A sound of a source's column as a file that holds the same samples, at that rate where it has none of its own.

    Raises ValueError, in words.
    """
    sound = _taken(item)
    if sound is None:
        raise ValueError("the sound is missing")
    if isinstance(sound, bytes):
        return sound
    rate = sound.sampling_rate or sampling_rate
    if not rate:
        raise ValueError("the samples come without a rate: give structs of array and sampling_rate, or files")
    file = io.BytesIO()
    _libraries()[0].write(file, sound.samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _too_long(seconds: float, most: float) -> str:
    return f"the sound takes {seconds:.2f} s, more than max_seconds {most:g}"


def _taken(item: Any) -> bytes | Sound | None:
    """What a source's column holds. A list without a rate has the model's."""
    if isinstance(item, dict):
        if isinstance(item.get("bytes"), bytes):
            return bytes(item["bytes"])
        return Sound(_samples(item.get("array")), int(item.get("sampling_rate") or 0))
    return item if item is None or isinstance(item, bytes) else Sound(_samples(item), 0)


def _samples(values: Any) -> Array:
    try:
        samples = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        raise ValueError("the sound is neither bytes nor a list of samples") from None
    if samples.ndim != 1:
        raise ValueError("the sound is neither bytes nor a list of samples")
    return samples


def _libraries() -> tuple[Any, Any]:
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:
        raise MissingError(
            f"inputs of type audio need the packages soundfile and soxr ({error})",
            remedy="pip install 'tidegate[audio]'",
        ) from None
    return soundfile, soxr
