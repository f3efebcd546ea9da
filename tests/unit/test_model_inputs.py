"""From a file's columns to a model's inputs: values of any stored type, and what is wrong with a row."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tidegate.errors import DataError
from tidegate.model_inputs import InputReader
from tidegate.signature import Signature, TensorSpec
from tidegate.transforms.audio import decoded

OUT = (TensorSpec("y", "FP32", (-1,)),)


def read(datatype: str, shape: list[int], column: Any, name: str = "x") -> tuple[list[Any], list[str | None]]:
    table = pa.table({name: column})
    signature = Signature((TensorSpec("x", datatype, (-1, *shape)),), OUT)
    inputs, found = InputReader(signature, table.column_names, "rows").read(table)
    assert inputs["x"].shape[0] == len(table)
    return inputs["x"].tolist(), found.tolist()


@pytest.mark.parametrize(
    ("datatype", "shape", "column", "values"),
    [
        ("FP64", [], ["1.5", " 2 "], [1.5, 2.0]),
        ("FP32", [], [1, 2], [1.0, 2.0]),
        ("FP32", [2], [[1, 2], [3, 4]], [[1.0, 2.0], [3.0, 4.0]]),
        ("FP32", [1, 2, 1], [[1, 2]], [[[[1.0], [2.0]]]]),
        ("FP32", [1, 2, 1], [[[[1], [2]]]], [[[[1.0], [2.0]]]]),
        ("INT64", [], ["9007199254740993", "-2"], [9007199254740993, -2]),
        ("INT64", [], [9007199254740993, 3], [9007199254740993, 3]),
        ("INT32", [], [1.0, 2.0], [1, 2]),
        ("UINT8", [2], [[0, 255]], [[0, 255]]),
        ("BOOL", [], ["true", "0"], [True, False]),
        ("BOOL", [], [True, False], [True, False]),
        ("BYTES", [], ["a", ""], ["a", ""]),
        ("BYTES", [], [3, 4], ["3", "4"]),
        ("BYTES", [], pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        ("BYTES", [], ["é".encode(), b"x"], ["é", "x"]),
        ("FP32", [-1], [[1, 2, 3], [4, 5, 6]], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
    ],
)
def test_values_in_the_datatype_and_shape_of_the_model(
    datatype: str, shape: list[int], column: Any, values: list[Any]
) -> None:
    assert read(datatype, shape, column) == (values, [None] * len(values))


@pytest.mark.parametrize(
    ("datatype", "shape", "column", "problems"),
    [
        ("FP64", [], ["1", "two", None, "inf"], [None, "'two' is no number", "a number is missing or NaN", "infinite"]),
        ("FP32", [2], [[1, 2], [1], None], [None, "the list holds 1 numbers, not 2", "the list is missing"]),
        ("INT64", [], ["1", "1.5", "", None], [None, "'1.5' is no whole number", "is missing", "is missing"]),
        ("UINT8", [], [1, 300, -1], [None, "'300' is no whole number that uint8", "'-1' is no whole number"]),
        ("UINT8", [2], [[1, 2], [1, 300]], [None, "none that UINT8 holds"]),
        ("BOOL", [], ["true", "yes"], [None, "'yes' is neither true nor false"]),
        ("BYTES", [], ["a", None], [None, "the value is missing"]),
        ("BYTES", [], [b"a", b"\xff"], [None, "no UTF-8"]),
        ("FP32", [-1], [[1.0, 2.0], None], [None, "the value is missing"]),
    ],
)
def test_each_row_that_does_not_fit_has_its_problem(
    datatype: str, shape: list[int], column: Any, problems: list[str | None]
) -> None:
    _, found = read(datatype, shape, column)
    for have, want in zip(found, problems, strict=True):
        assert (have is None) if want is None else (have is not None and have.startswith("x: ") and want in have)


@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), as_text=st.booleans())
def test_whole_numbers_arrive_exactly(values: list[int], as_text: bool) -> None:
    column = [str(value) for value in values] if as_text else pa.array(values, pa.int64())
    assert read("INT64", [], column) == (values, [None] * len(values))


def png(white: int, size: tuple[int, int] = (4, 4)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full(size, white, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_images_are_decoded_to_the_size_and_scale_of_the_model() -> None:
    table = pa.table({"image": [png(255), png(51, (9, 5)), b"rubbish"]})
    signature = Signature((TensorSpec("pixels", "FP32", (-1, 2, 2, 1)),), OUT)
    reader = InputReader(signature, ["image"], "rows", {"pixels": 16.0})
    inputs, found = reader.read(table)
    np.testing.assert_allclose(inputs["pixels"][:2].reshape(2, 4), [[16.0] * 4, [3.2] * 4], rtol=1e-6)
    assert found.tolist()[:2] == [None, None]
    assert "no readable image" in found[2]
    assert reader.rows_at_once == 2**20


def test_bytes_that_can_be_no_image_are_refused() -> None:
    with pytest.raises(DataError, match="x holds bytes, and x takes FP32"):
        read("FP32", [4], [png(0)])


def test_a_column_that_is_missing_is_named_with_its_neighbour() -> None:
    signature = Signature((TensorSpec("age", "FP32", (-1,)), TensorSpec("city", "BYTES", (-1,))), OUT)
    with pytest.raises(DataError, match=r"people\.csv has no column age.*it has Age, city.*did you mean 'Age'"):
        InputReader(signature, ["Age", "city"], "people.csv")


def test_sounds_are_read_as_files() -> None:
    signature = Signature((TensorSpec("sound", "BYTES", (-1,), "audio"),), OUT)
    files = [b"RIFF\xff\x00", b"fLaC\xfe"]
    for column in (pa.array(files, pa.binary()), pa.array([{"bytes": file, "path": "a.wav"} for file in files])):
        reader = InputReader(signature, ["sound"], "rows")
        assert 8 <= reader.rows_at_once <= 64
        inputs, found = reader.read(pa.table({"sound": column}))
        assert (inputs["sound"].tolist(), found.tolist()) == (files, [None, None])
    _, found = InputReader(signature, ["sound"], "rows").read(
        pa.table({"sound": pa.array([files[0], None], pa.binary())})
    )
    assert found.tolist() == [None, "sound: the sound is missing"]
    _, found = InputReader(signature, ["sound"], "rows").read(pa.table({"sound": pa.array(["a.wav", ""])}))
    assert found.tolist() == ["sound: the sound is neither bytes nor a list of samples"] * 2


def test_samples_with_a_rate_become_files_of_the_same() -> None:
    signature = Signature((TensorSpec("sound", "BYTES", (-1,), "audio"),), OUT)
    samples = np.sin(np.arange(400) / 7).astype(np.float32)
    column = pa.array([{"array": samples.tolist(), "sampling_rate": 8000}, {"array": [0.5], "sampling_rate": None}])
    inputs, found = InputReader(signature, ["sound"], "rows").read(pa.table({"sound": column}))
    heard = decoded(inputs["sound"][0], 1.0)
    assert (heard.samples.tolist(), heard.sampling_rate) == (samples.tolist(), 8000)
    assert found[1].startswith("sound: the samples come without a rate")
    known = Signature((TensorSpec("sound", "BYTES", (-1,), "audio", 16_000),), OUT)
    inputs, found = InputReader(known, ["sound"], "rows").read(pa.table({"sound": pa.array([samples.tolist()])}))
    assert found.tolist() == [None]
    assert decoded(inputs["sound"][0], 1.0).sampling_rate == 16_000
    assert Signature.from_json(known.to_json()) == known


def test_images_in_structs_are_read_as_files() -> None:
    file = io.BytesIO()
    Image.new("L", (2, 2), 200).save(file, "PNG")
    signature = Signature((TensorSpec("image", "FP32", (-1, 2, 2, 1), "image"),), OUT)
    column = pa.array([{"bytes": file.getvalue(), "path": "a.png"}, {"bytes": None, "path": "b.png"}])
    inputs, found = InputReader(signature, ["image"], "rows").read(pa.table({"image": column}))
    assert inputs["image"][0].reshape(-1).tolist() == [200.0] * 4
    assert found.tolist() == [None, "image: the image is missing"]
