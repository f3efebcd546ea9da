"""Sounds: spectra against an independent implementation, and from any form to the same arrays."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from transformers.audio_utils import mel_filter_bank, spectrogram

from tidegate.content import Sound, objects
from tidegate.data.prepared import column_array
from tidegate.errors import RequestError
from tidegate.spec.data import AudioInput
from tidegate.transforms.audio import AudioTransform
from tidegate.transforms.base import length_key
from tidegate.transforms.columns import canonical, transform
from tidegate.transforms.log_mel import SILENCE, frames_of, log_mel
from tones import RATE, dialled, encoded, numbers

SPEC = AudioInput(type="audio", max_seconds=1.0, sampling_rate=RATE, mels=20)


def read(values: Any, spec: AudioInput = SPEC) -> tuple[Any, list[str | None]]:
    column, found = canonical(spec).read(values if isinstance(values, pa.Array) else pa.array(values))
    return column_array(column).reshape(len(found), -1, spec.mels), found.tolist()


def fitted(values: Any) -> AudioTransform:
    reader = canonical(SPEC)
    parts = [
        reader.partial(part.reshape(len(part), -1)) for part in np.array_split(read(values)[0], min(3, len(values)))
    ]
    made = transform("x", json.loads(json.dumps(reader.fit(parts))))
    assert isinstance(made, AudioTransform)
    return made


@pytest.mark.parametrize(("rate", "mels", "size"), [(8000, 20, 256), (16_000, 40, 512), (24_000, 64, 1024)])
def test_spectra_are_those_of_another_implementation(rate: int, mels: int, size: int) -> None:
    samples = dialled("159#", rate)
    window, hop = round(0.025 * rate), round(0.01 * rate)
    bands = mel_filter_bank(size // 2 + 1, mels, 0.0, rate / 2, rate, norm=None, mel_scale="htk")
    hann = np.hanning(window + 1)[:-1]
    expected = spectrogram(
        samples, hann, window, hop, size, power=2.0, pad_mode="constant", mel_filters=bands, mel_floor=0.0
    )
    found = log_mel(samples, rate, mels)
    assert found.shape == (frames_of(len(samples), rate), mels)
    assert np.exp(found) == pytest.approx(expected.T + SILENCE, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_a_sound_is_the_same_in_any_form(kind: str) -> None:
    samples = dialled("20*")
    ours = [encoded(dialled(keys)) for keys in numbers(9)]
    made = fitted(ours)
    plain = made.apply(objects([Sound(samples, RATE), Sound(samples, 0)]))
    assert np.array_equal(plain["x"][0], plain["x"][1])
    found = made.apply(objects([encoded(samples, kind=kind)]))["x"]
    # A file has 16 bits a sample, and OGG leaves out what is not heard.
    distance = np.abs(found - plain["x"][:1])
    assert distance.max() < 0.5 if kind != "OGG" else distance.mean() < 0.5
    stereo = encoded(np.stack([samples, samples], axis=1))
    assert np.abs(made.apply(objects([stereo]))["x"] - plain["x"][:1]).max() < 0.5
    twice = made.apply(objects([Sound(dialled("20*", 2 * RATE), 2 * RATE)]))
    assert abs(int(twice[length_key("x")][0, 0]) - int(plain[length_key("x")][0, 0])) <= 1
    loud = read([encoded(samples)])[0][0] > -5
    assert np.mean(loud == (read([encoded(dialled("20*", 2 * RATE), 2 * RATE)])[0][0] > -5)) > 0.95


def test_prepared_rows_are_what_a_request_becomes() -> None:
    files = [encoded(dialled(keys)) for keys in numbers(9)]
    made = fitted(files)
    prepared = made.apply(read(files)[0].reshape(9, -1))
    asked = made.apply(objects(files))
    assert all(np.array_equal(array, asked[name]) for name, array in prepared.items())
    lengths = [frames_of(len(dialled(keys)), RATE) for keys in numbers(9)]
    assert asked[length_key("x")][:, 0].tolist() == lengths
    known = np.concatenate([row[:length] for row, length in zip(asked["x"].reshape(9, -1, 20), lengths, strict=True)])
    assert known.mean(axis=0) == pytest.approx(np.zeros(20), abs=1e-4)
    assert known.std(axis=0) == pytest.approx(np.ones(20), abs=1e-4)
    assert made.apply(made.example(2))["x"].shape == asked["x"][:2].shape


def test_sources_may_hold_samples_or_structs() -> None:
    samples = dialled("7")
    alone, _ = read([encoded(samples)])
    for value in (samples.tolist(), {"array": samples.tolist(), "sampling_rate": RATE}, {"bytes": encoded(samples)}):
        found, problems = read(pa.array([value]))
        assert problems == [None]
        # A file has 16 bits a sample.
        heard = alone > -5
        assert np.abs(found - alone)[heard].max() < 0.01


def test_the_problem_of_each_sound_that_does_not_fit() -> None:
    whole = encoded(dialled("123456"))
    empty = io.BytesIO()
    soundfile.write(empty, np.zeros(0, np.float32), RATE, format="WAV")
    _, found = read(pa.array([whole, None, b"", b"rubbish", whole[:30], empty.getvalue(), encoded(dialled("1" * 9))]))
    assert found == [
        None,
        "the sound is missing",
        "the bytes are no readable sound (WAV, FLAC, OGG or MP3)",
        "the bytes are no readable sound (WAV, FLAC, OGG or MP3)",
        "the bytes are no readable sound (WAV, FLAC, OGG or MP3)",
        "the sound holds no sample",
        "the sound takes 1.22 s, more than max_seconds 1",
    ]
    assert read(pa.array([[[0.1]]]))[1] == ["the sound is neither bytes nor a list of samples"]
    made = fitted([whole])
    with pytest.raises(RequestError, match="x, row 1: the bytes are no readable sound"):
        made.apply(objects([whole, b"rubbish"]))
    with pytest.raises(RequestError, match="far outside -1 to 1"):
        made.apply(objects([Sound(np.array([np.nan, 0.0], np.float32), RATE)]))


def test_a_file_that_does_not_tell_its_length() -> None:
    file = bytearray(encoded(dialled("12"), kind="FLAC"))
    # The low 36 bits of the eight bytes from the 18th on are the number of samples (RFC 9639, 8.2).
    file[21] &= 0xF0
    file[22:26] = bytes(4)
    assert read(pa.array([bytes(file)]))[1] == [
        "the sound does not tell how long it is: encode it again, to a file and not to a pipe"
    ]


@given(st.sampled_from(["WAV", "FLAC", "OGG"]), st.data())
def test_damaged_files_are_refused_or_heard(kind: str, data: st.DataObject) -> None:
    file = bytearray(encoded(dialled("12"), kind=kind))
    for _ in range(data.draw(st.integers(1, 9))):
        file[data.draw(st.integers(0, len(file) - 1) | st.integers(0, 60))] = data.draw(st.integers(0, 255))
    values, found = read(pa.array([bytes(file[: data.draw(st.integers(0, len(file)) | st.just(len(file)))])]))
    assert found[0] is not None or np.isfinite(values[0][0]).all()
