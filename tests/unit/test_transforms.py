"""Transforms: each column type from the source's values to a model's arrays, and the problem of each row that fails."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zlib
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import TypeAdapter
from sklearn.datasets import load_diabetes, load_digits, load_iris
from tokenizers import Tokenizer

from tidegate.content import objects
from tidegate.data.canonical import column_of
from tidegate.data.prepared import column_array
from tidegate.errors import DataError, RequestError
from tidegate.spec.data import (
    CategoryInput,
    CategoryTarget,
    ImageInput,
    NumberInput,
    NumberTarget,
    Target,
    TextInput,
)
from tidegate.transforms.base import Array, Feature, length_key, merged_moments, moments
from tidegate.transforms.category import vocabulary
from tidegate.transforms.columns import Columns, canonical, transform
from tidegate.transforms.target import TargetTransform, target_column, target_transform
from tidegate.transforms.text import PAD, UNKNOWN, first_codes

NUMBER = NumberInput(type="number")


def read(spec: Any, values: Any) -> tuple[Array, list[str | None]]:
    """Canonical values and problems of a column."""
    column = values if isinstance(values, pa.Array) else pa.array(values)
    canonical_values, found = canonical(spec).read(column)
    assert len(canonical_values) == len(found) == len(column)
    return column_array(canonical_values), found.tolist()


def fitted(spec: Any, values: Any, pieces: int = 1) -> dict[str, Any]:
    """The state, fitted on all values in `pieces` pieces; as it comes back from a manifest."""
    array, found = read(spec, values)
    assert found == [None] * len(found)
    reader = canonical(spec)
    state = reader.fit([json.loads(json.dumps(reader.partial(part))) for part in np.array_split(array, pieces)])
    return dict(json.loads(json.dumps(state)))


def applied(spec: Any, values: Any) -> dict[str, Array]:
    return transform("x", fitted(spec, values)).apply(read(spec, values)[0])


# Numbers


def test_numbers_are_standardised_on_real_data() -> None:
    data = load_diabetes(scaled=False).data
    result = applied(NumberInput(type="number", length=10), data.tolist())["x"]
    assert result.dtype == np.float32
    assert result.shape == (442, 10)
    np.testing.assert_allclose(result.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(result.std(axis=0, dtype=np.float64), 1, atol=1e-6)
    np.testing.assert_allclose(result, (data - data.mean(axis=0)) / data.std(axis=0), atol=1e-5)


@given(
    cuts=st.lists(st.integers(0, 150), max_size=12).map(sorted),
    scale=st.sampled_from([1.0, 1e-12, 1e12]),
    shift=st.sampled_from([0.0, 1e3, -1e6]),
)
@settings(max_examples=200, deadline=None)
def test_moments_are_the_same_over_any_partition(cuts: list[int], scale: float, shift: float) -> None:
    rows = load_iris().data * scale + shift * scale
    parts = [moments(part) for part in np.split(rows, cuts)]
    count, mean, deviation = merged_moments(parts)
    assert count.tolist() == [150] * 4
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12)
    # A shift of k deviations costs k * k of the precision of doubles.
    np.testing.assert_allclose(deviation, rows.std(axis=0), rtol=1e-12 if shift == 0 else 1e-8)
    again = merged_moments([json.loads(json.dumps(moments(part))) for part in np.split(rows, cuts)])
    assert [part.tobytes() for part in again] == [part.tobytes() for part in (count, mean, deviation)]


def test_moments_leave_out_what_is_missing() -> None:
    rows = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 5.0]])
    count, mean, deviation = merged_moments([moments(rows[:1]), moments(rows[1:2]), moments(rows[2:])])
    assert (count.tolist(), mean.tolist(), deviation.tolist()) == ([2, 1], [2.0, 5.0], [1.0, 0.0])
    count, mean, _ = merged_moments([moments(np.full((3, 1), np.nan))])
    assert (count.tolist(), mean.tolist()) == ([0], [0.0])


@pytest.mark.parametrize("value", [5.0, 0.1, -1e-7, 1e15, 0.0])
@pytest.mark.parametrize("pieces", [1, 7])
def test_a_constant_column_becomes_zero(value: float, pieces: int) -> None:
    state = fitted(NUMBER, [value] * 1000, pieces)
    assert transform("x", state).apply(np.full((1000, 1), value))["x"].tolist() == [[0.0]] * 1000


def test_scale_none_leaves_numbers_as_they_are() -> None:
    spec = NumberInput(type="number", scale="none")
    assert applied(spec, [1.5, -2.0, 1e10])["x"].tolist() == [[1.5], [-2.0], [1e10]]


def test_a_missing_number_gets_the_mean_or_is_refused() -> None:
    spec = NumberInput(type="number", missing="mean", scale="none")
    values, found = read(spec, [1.0, None, 5.0, float("nan")])
    assert found == [None] * 4
    fit = transform("x", fitted(spec, [1.0, None, 5.0, float("nan")]))
    assert fit.apply(values)["x"].tolist() == [[1.0], [3.0], [5.0], [3.0]]
    _, found = read(NUMBER, [1.0, None, float("nan")])
    assert found == [None, "a number is missing or NaN", "a number is missing or NaN"]
    with pytest.raises(RequestError, match="x holds NaN"):
        transform("x", fitted(NUMBER, [1.0, 2.0])).apply(np.array([np.nan]))


def test_a_column_in_which_every_number_is_missing() -> None:
    spec = NumberInput(type="number", missing="mean")
    assert applied(spec, pa.array([None, None], pa.float64()))["x"].tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, 2], pa.int8()), [1.0, 2.0]),
        (pa.array([2**60, 3], pa.uint64()), [2.0**60, 3.0]),
        (pa.array([1.5, 2], pa.float16()), [1.5, 2.0]),
        (pa.array([True, False]), [1.0, 0.0]),
        (pa.array(["1.5", " -2e3 "]), [1.5, -2000.0]),
        (pa.array([Decimal("1.5"), Decimal(2)]), [1.5, 2.0]),
        (pa.array(["1", "2"], pa.large_string()), [1.0, 2.0]),
        (pa.array(["7", "2", "7"]).dictionary_encode(), [7.0, 2.0, 7.0]),
    ],
)
def test_numbers_of_every_arrow_type(values: pa.Array, expected: list[float]) -> None:
    found, problems = read(NUMBER, values)
    assert problems == [None] * len(expected)
    assert found.reshape(-1).tolist() == expected


@pytest.mark.parametrize(
    ("spec", "values", "found"),
    [
        (NUMBER, pa.array([1.0, np.inf, -np.inf]), [None, "a number is infinite", "a number is infinite"]),
        (NUMBER, pa.array(["1", "two", ""]), [None, "'two' is no number", "a number is missing or NaN"]),
        (NUMBER, pa.array(["inf", "nan"]), ["a number is infinite", "a number is missing or NaN"]),
        (NUMBER, pa.array([None, "x" * 5000]), ["a number is missing or NaN", f"'{'x' * 36}... is no number"]),
        (NUMBER, pa.nulls(2), ["a number is missing or NaN"] * 2),
        (NUMBER, pa.array(["NA", " n/a", "null", "None", "?"]), ["a number is missing or NaN"] * 5),
        (NUMBER, pa.array([3e38, -4e38, 1e300]), [None, *["a number is too large to use"] * 2]),
        (
            NUMBER,
            pa.array([[1.0], [], None, [1.0, 2.0]]),
            [None, "the list holds 0 numbers, not 1", "the list is missing", "the list holds 2 numbers, not 1"],
        ),
        (
            NumberInput(type="number", length=2),
            pa.array([[1, 2], [1], None]),
            [None, "the list holds 1 numbers, not 2", "the list is missing"],
        ),
        (
            NumberInput(type="number", length=2),
            pa.array([[1.0, None], [np.inf, 2.0]]),
            ["a number is missing or NaN", "a number is infinite"],
        ),
        (
            NumberInput(type="number", length=2),
            pa.array([["1", "b"], ["1", "2"]]),
            ["the list holds something that is no number", None],
        ),
        (NumberInput(type="number", length=2), pa.array([1.0]), ["a single value where a list of 2 numbers belongs"]),
        (NUMBER, pa.array([{"a": 1}]), ["{'a': 1} is no number"]),
        (NUMBER, pa.array([b"1", b"\xff"], pa.binary()), [None, "b'\\xff' is no number"]),
    ],
)
def test_the_problem_of_each_number_that_does_not_fit(spec: Any, values: pa.Array, found: list[str | None]) -> None:
    assert read(spec, values)[1] == found


@given(st.lists(st.none() | st.floats() | st.integers(-(10**30), 10**30) | st.text(max_size=5), max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_column_of_numbers_is_read_or_each_row_has_a_problem(values: list[Any]) -> None:
    column = pa.array([None if value is None else str(value) for value in values], pa.string())
    found, problems = read(NUMBER, column)
    for value, problem in zip(found.reshape(-1), problems, strict=True):
        assert np.isfinite(value) or problem is not None


def test_a_number_too_large_for_the_model_is_refused() -> None:
    fit = transform("x", fitted(NUMBER, [0.0, 1.0]))
    with pytest.raises(RequestError, match="x holds a number too large"):
        fit.apply(np.array([1e300]))


@pytest.mark.parametrize("spec", [NUMBER, NumberInput(type="number", length=3)])
def test_examples_can_be_applied(spec: NumberInput) -> None:
    fit = transform("x", fitted(spec, [[1.0] * spec.length, [2.0] * spec.length]))
    example = fit.example(5)
    assert example.shape == (5, *fit.tensor.shape[1:])
    assert fit.apply(example)["x"].shape == (5, spec.length)


# Categories


@pytest.mark.parametrize(
    ("values", "vocabulary", "datatype"),
    [
        ([3, 10, 3, -2], ["-2", "3", "10"], "INT64"),
        (["b", "a", "10"], ["10", "a", "b"], "BYTES"),
        (["3", "10"], ["3", "10"], "INT64"),
        ([True, False, True], ["false", "true"], "BYTES"),
        ([2.0, 1.0], ["1", "2"], "INT64"),
        (["01", "1"], ["01", "1"], "BYTES"),
        (["", " a", "a"], ["", " a", "a"], "BYTES"),
        (["ß", "ẞ", "日本"], ["ß", "ẞ", "日本"], "BYTES"),
        (["٣", "3"], ["3", "٣"], "BYTES"),
        (["-0", "--1", "-"], ["-", "--1", "-0"], "BYTES"),
        ([10**18, 1], ["1", str(10**18)], "BYTES"),
    ],
)
def test_categories(values: list[Any], vocabulary: list[str], datatype: str) -> None:
    spec = CategoryInput(type="category")
    state = fitted(spec, values)
    assert state["vocabulary"] == vocabulary
    fit = transform("x", state)
    assert fit.tensor.datatype == datatype
    assert fit.feature.cardinality == len(vocabulary)
    canonical_values, _ = read(spec, values)
    codes = fit.apply(canonical_values)["x"]
    assert (codes.dtype, codes.shape) == (np.int32, (len(values), 1))
    assert [vocabulary[code] for code in codes.reshape(-1)] == canonical_values.tolist()


@given(values=st.lists(st.text(max_size=4), min_size=1, max_size=60), pieces=st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_the_vocabulary_is_the_same_over_any_partition(values: list[str], pieces: int) -> None:
    spec = CategoryInput(type="category")
    assert fitted(spec, values, pieces) == fitted(spec, sorted(values), 1)


def test_an_unknown_category_is_refused_or_gets_the_bucket() -> None:
    values, names = ["a", "b"], [f"v{number}" for number in range(100)]
    with pytest.raises(RequestError, match="x holds 'c'; expected one of a, b"):
        transform("x", fitted(CategoryInput(type="category"), values)).apply(np.array(["a", "c"], object))
    with pytest.raises(RequestError, match=r"v0, v1, v10, v11, v12, v13, v14, v15, v16, v17, \.\.\.$"):
        transform("x", fitted(CategoryInput(type="category"), names)).apply(np.array(["z" * 200], object))
    fit = transform("x", fitted(CategoryInput(type="category", unknown="bucket"), values))
    assert (fit.feature.cardinality, fit.feature.has_bucket) == (3, True)
    assert fit.apply(np.array(["b", "c", "a", ""], object))["x"].tolist() == [[1], [2], [0], [2]]


def test_numbers_at_the_endpoint_are_the_categories_of_the_source() -> None:
    fit = transform("x", fitted(CategoryInput(type="category"), [3, 10]))
    assert fit.apply(np.array([10, 3], np.int64))["x"].tolist() == [[1], [0]]
    example = fit.example(2)
    assert (example.dtype, example.tolist()) == (np.int64, [3, 3])
    assert fit.apply(example)["x"].tolist() == [[0], [0]]


def test_the_problem_of_each_category_that_does_not_fit() -> None:
    spec = CategoryInput(type="category")
    assert read(spec, pa.array(["a", None]))[1] == [None, "the value is missing"]
    assert read(spec, pa.array([1.0, 1.5, np.nan, None]))[1] == [
        None,
        "1.5 is neither a string nor a whole number",
        "the value is missing",
        "the value is missing",
    ]
    assert read(spec, pa.array([np.inf]))[1] == ["inf is neither a string nor a whole number"]
    assert read(spec, pa.array([[1]]))[1] == ["[1] is neither a string nor a whole number"]


def test_a_gap_may_be_a_category_of_its_own() -> None:
    spec = CategoryInput(type="category", missing="empty")
    for column in (pa.array(["b", None, ""]), pa.array([1.0, np.nan, None]), pa.array([True, None])):
        values, problems = read(spec, column)
        assert problems == [None] * len(column)
        assert values.tolist()[1] == ""
    assert read(spec, pa.array([1.5, None]))[1] == ["1.5 is neither a string nor a whole number", None]
    fit = transform("x", fitted(spec, ["b", None, "a"]))
    assert fit.apply(np.array(["", "b"], object))["x"].tolist() == [[0], [2]]


# Text

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "the dog sleeps; the fox does not",
    "A fox, a dog, a fox!",
    "Füchse und Hunde schlafen nicht, schlafen nicht",
    "狐と犬 狐と犬",
    "",
    "   ",
    "emoji 🦊🐶 emoji 🦊",
] * 3


@pytest.mark.parametrize("tokenizer", ["word", "bpe"])
def test_text_becomes_padded_codes(tokenizer: Any) -> None:
    spec = TextInput(type="text", tokenizer=tokenizer, vocab_size=300, max_length=6)
    fit = transform("x", fitted(spec, SENTENCES))
    result = fit.apply(np.array(SENTENCES, object))
    codes, lengths = result["x"], result[length_key("x")]
    assert (codes.dtype, codes.shape, lengths.dtype, lengths.shape) == (np.int32, (24, 6), np.int32, (24, 1))
    assert codes.max() < fit.feature.cardinality <= 300
    for row, length in zip(codes, lengths.reshape(-1), strict=True):
        assert 1 <= length <= 6
        assert (row[length:] == PAD).all()
        assert (row[:length] != PAD).all()
    # A text without a token is one unknown token.
    assert codes[5].tolist() == codes[6].tolist() == [UNKNOWN, 0, 0, 0, 0, 0]
    # Case and compatibility forms do not matter; a text of new characters is unknown.
    same = fit.apply(np.array(["the FOX", "The fox", "ｔｈｅ ｆｏｘ", "ѥ"], object))["x"]
    assert same[0].tolist() == same[1].tolist() == same[2].tolist()
    assert set(same[3].tolist()) <= {UNKNOWN, PAD}
    assert fit.apply(fit.example(2))["x"].shape == (2, 6)


def test_the_rows_of_a_batch_do_not_matter_to_each_other() -> None:
    fit = transform("x", fitted(TextInput(type="text", max_length=12), SENTENCES))
    together = fit.apply(np.array(SENTENCES, object))["x"]
    alone = np.concatenate([fit.apply(np.array([text], object))["x"] for text in SENTENCES])
    assert together.tolist() == alone.tolist()


@pytest.mark.parametrize("tokenizer", ["word", "bpe"])
@pytest.mark.parametrize("pieces", [1, 2, 5, 24])
def test_a_tokenizer_is_the_same_over_any_partition(tokenizer: Any, pieces: int) -> None:
    spec = TextInput(type="text", tokenizer=tokenizer, vocab_size=300)
    assert fitted(spec, SENTENCES, pieces) == fitted(spec, SENTENCES[::-1], 1)


TRAIN = """
import hashlib, json, sys
from sklearn.datasets import load_iris, load_diabetes, load_digits, load_wine, load_breast_cancer
import numpy as np
from tidegate.spec.data import TextInput
from tidegate.transforms.text import TextColumn
texts = [load().DESCR for load in (load_iris, load_diabetes, load_digits, load_wine, load_breast_cancer)]
lines = np.array([line for text in texts for line in text.splitlines()], object)
for kind in ("word", "bpe"):
    column = TextColumn(TextInput(type="text", tokenizer=kind, vocab_size=600))
    state = column.fit([column.partial(part) for part in np.array_split(lines, 5)])
    print(state["vocab_size"], hashlib.sha256(json.dumps(state).encode()).hexdigest())
"""


def test_tokenizers_are_the_same_in_every_process() -> None:
    runs = {
        subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True, env=env).stdout
        for env in (
            {"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1"},
            {"PYTHONHASHSEED": "2"},
            {"RAYON_NUM_THREADS": "4"},
        )
    }
    assert len(runs) == 1
    sizes = [int(line.split()[0]) for line in runs.pop().splitlines()]
    assert sizes[1] == 600
    assert 300 < sizes[0] <= 600


def test_texts_that_name_special_tokens_are_texts() -> None:
    fit = transform("x", fitted(TextInput(type="text", max_length=12), [*SENTENCES, "[ pad ] unk [ pad ]"]))
    named, spaced = (fit.apply(np.array([text], object))["x"].tolist() for text in ("[PAD] [UNK]", "[ pad ] [ unk ]"))
    assert named == spaced
    assert named[0][0] not in (PAD, UNKNOWN)


PIECES = ["the", "cat", "dog's", "\u3042\u3044\u3046\u3048", "   ", "\n", "e\u0301te\u0301", "x" * 500, "!!", "[UNK]"]


@pytest.mark.parametrize("kind", ["word", "character", "bpe"])
@given(
    st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 400)), min_size=1, max_size=12), st.sampled_from(" |")
)
@settings(max_examples=50, deadline=None)
def test_the_first_tokens_of_a_long_text_are_those_of_the_whole(
    kind: Any, runs: list[tuple[str, int]], between: str
) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(LONG[kind]["tokenizer"]))
    text = between.strip("|").join(piece for piece, times in runs for _ in range(times))
    (found,) = first_codes(tokenizer, [text], 40)
    assert found == tokenizer.encode(text).ids[:40]


def test_the_problem_of_each_text_that_does_not_fit() -> None:
    assert read(TextInput(type="text"), pa.array(["a", "", None]))[1] == [None, None, "the text is missing"]
    assert read(TextInput(type="text"), pa.array([12345]))[1] == ["12345 is no text"]
    values, problems = read(TextInput(type="text"), pa.array(["Bücher".encode(), b"\xef\xbb\xbfa", b"ab\xff", None]))
    assert values.tolist()[:2] == ["Bücher", "a"]
    assert problems == [None, None, "the bytes are no UTF-8 text from byte 2 on", "the text is missing"]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_any_text_becomes_codes(texts: list[str]) -> None:
    fit = transform("x", STATE)
    result = fit.apply(np.array(texts, object))
    assert ((result["x"] >= 0) & (result["x"] < fit.feature.cardinality)).all()


LONG = {
    kind: fitted(TextInput(type="text", tokenizer=kind, vocab_size=300), [*SENTENCES, " ".join(PIECES * 2)])
    for kind in ("word", "character", "bpe")
}
STATE = fitted(TextInput(type="text", vocab_size=300, max_length=16), SENTENCES)


# Images


def encoded(pixels: Array, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


DIGITS = ImageInput(type="image", size=[8, 8], max_value=16.0)


def test_images_are_normalised_on_real_data() -> None:
    images = load_digits().images
    result = applied(DIGITS, images.reshape(len(images), -1).tolist())["x"]
    assert (result.dtype, result.shape) == (np.float32, (1797, 64))
    assert abs(result.mean(dtype=np.float64)) < 1e-6
    assert abs(result.std(dtype=np.float64) - 1) < 1e-6
    order = np.argsort(images.reshape(-1), kind="stable")
    assert (np.diff(result.reshape(-1)[order]) >= 0).all()


def test_flat_nested_and_encoded_images_are_the_same() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
    spec = ImageInput(type="image", size=[6, 4], channels=3)
    flat, _ = read(spec, pixels.reshape(5, -1).tolist())
    nested, _ = read(spec, pixels.tolist())
    decoded, found = read(spec, pa.array([encoded(image) for image in pixels]))
    assert found == [None] * 5
    assert flat.tobytes() == nested.tobytes() == decoded.tobytes()
    assert flat.tolist() == pixels.reshape(5, -1).tolist()
    large, _ = read(spec, pa.array([encoded(image) for image in pixels], pa.large_binary()))
    assert large.tobytes() == flat.tobytes()
    # Channels come first in what the model takes.
    result = transform("x", fitted(spec, pixels.tolist())).apply(pixels)["x"].reshape(5, 3, 6, 4)
    state = fitted(spec, pixels.tolist(), 3)
    for channel in range(3):
        plain = (pixels[..., channel] / 255 - state["mean"][channel]) / state["deviation"][channel]
        np.testing.assert_allclose(result[:, channel], plain, atol=1e-6)


def test_encoded_images_are_brought_to_size_and_channels() -> None:
    gray = np.full((20, 10), 128, np.uint8)
    spec = ImageInput(type="image", size=[4, 2], channels=3, max_value=1.0)
    values, found = read(spec, pa.array([encoded(gray), encoded(gray, "BMP"), encoded(gray, "GIF")]))
    assert found == [None] * 3
    np.testing.assert_allclose(values, 128 / 255, atol=1e-6)
    palette, rgba = Image.new("P", (3, 3), 0), Image.new("RGBA", (3, 3), (255, 255, 255, 255))
    buffers = [io.BytesIO(), io.BytesIO()]
    palette.save(buffers[0], "PNG")
    rgba.save(buffers[1], "PNG")
    _, found = read(spec, pa.array([buffer.getvalue() for buffer in buffers]))
    assert found == [None] * 2


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    spec = ImageInput(type="image", size=[8, 8], channels=1)
    values, _ = read(spec, pa.array([file_of(Image.fromarray(ramp))]))
    assert values.reshape(8, 8).tolist() == (ramp >> 8).tolist()


def test_sixteen_bits_are_upright_too() -> None:
    ramp = np.arange(24, dtype=np.uint16).reshape(6, 4) << 8
    tags = Image.Exif()
    tags[0x0112] = 6
    values, _ = read(ImageInput(type="image", size=[4, 6]), pa.array([file_of(Image.fromarray(ramp), exif=tags)]))
    assert values.reshape(4, 6).tolist() == np.rot90(ramp >> 8, -1).tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_seen_upright(orientation: int) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(6, 4) * 10
    tags = Image.Exif()
    tags[0x0112] = orientation
    file = file_of(Image.fromarray(pixels), exif=tags.tobytes())
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))))
    spec = ImageInput(type="image", size=list(upright.shape), channels=1)
    values, found = read(spec, pa.array([file]))
    assert found == [None]
    assert values.reshape(upright.shape).tolist() == upright.tolist()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_can_be_seen_through_is_white(mode: str) -> None:
    """Black on nothing, as icons are: without its transparency there would be nothing to see."""
    shape = np.zeros((8, 8, 4), np.uint8)
    shape[2:6, 2:6, 3] = 255
    drawn = Image.fromarray(shape, "RGBA")
    if mode == "P":
        palette = Image.fromarray((shape[..., 3] == 0).astype(np.uint8), "P")
        palette.putpalette([0] * 6)
        file = file_of(palette, transparency=1)
    else:
        file = file_of(drawn.convert(mode))
    for channels in (1, 3):
        values, _ = read(ImageInput(type="image", size=[8, 8], channels=channels), pa.array([file]))  # type: ignore[arg-type]
        found = values.reshape(8, 8, channels)
        assert (found[2:6, 2:6] == 0).all()
        assert (found[:2] == 255).all()


def test_few_bytes_of_many_pixels_are_not_decoded() -> None:
    large = file_of(Image.new("L", (5000, 5000)))
    made = transform("x", fitted(ImageInput(type="image", size=[2, 2], channels=1), [[0.0] * 4]))
    assert len(made.apply(objects([large] * 2))["x"]) == 2
    with pytest.raises(RequestError, match="the images of x have more than 64000000 pixels together; send fewer"):
        made.apply(objects([large] * 3))


def bomb() -> bytes:
    """A small file that says it holds 30,000 x 30,000 pixels."""
    data = bytearray(encoded(np.zeros((1, 1), np.uint8)))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def test_the_problem_of_each_image_that_does_not_fit() -> None:
    good = encoded(np.zeros((8, 8), np.uint8))
    unreadable = "the bytes are no readable image (PNG, JPEG, GIF, BMP or WebP)"
    tiff = encoded(np.zeros((8, 8), np.uint8), "TIFF")
    broken = bytearray(good)
    broken[-20] ^= 255
    bad = [None, b"", b"no image", good[:-30], tiff, bytes(broken), good]
    _, found = read(DIGITS, pa.array(bad, pa.binary()))
    assert found == ["the image is missing", *[unreadable] * 5, None]
    (problem,) = read(DIGITS, pa.array([bomb()]))[1]
    assert problem == "the image has too many pixels; the limit is 64000000"


def test_images_over_the_limit_are_refused_without_a_warning() -> None:
    """Pillow warns from 90 million pixels on: the warning is no reason to stop, and the limit is lower."""
    data = bytearray(bomb())
    data[16:24] = (10_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    assert read(DIGITS, pa.array([bytes(data)]))[1] == ["the image has 10000 x 10000 pixels; the limit is 64000000"]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (pa.array([[0.0] * 64, [0.0] * 63, None]), [None, "the list holds 63 numbers, not 64", "the list is missing"]),
        (pa.array([[16.5] + [0.0] * 63, [-1.0] + [0.0] * 63]), ["a pixel lies outside 0..16"] * 2),
        (pa.array([[np.nan] + [0.0] * 63, [np.inf] + [0.0] * 63]), ["a pixel lies outside 0..16"] * 2),
        (
            pa.array([[[0.0] * 8] * 8, [[0.0] * 8] * 7, None]),
            [None, "the nested lists are 7 x 8, not 8 x 8 x 1", "the list is missing"],
        ),
        (
            pa.array([[[0.0] * 8] * 8, [[0.0] * 8] * 7 + [None]]),
            [None, "the nested lists are of different lengths, not 8 x 8 x 1"],
        ),
        (
            pa.array([[[0.0] * 16] * 4, [[0.0] * 4] * 16]),
            ["the nested lists are 4 x 16, not 8 x 8 x 1", "the nested lists are 16 x 4, not 8 x 8 x 1"],
        ),
        (pa.array([["a"] + ["0"] * 63]), ["the list holds something that is no number"]),
        (pa.array([1.0]), ["a single value where a list of 64 numbers belongs"]),
        (pa.array(["x"]), ["a single value where a list of 64 numbers belongs"]),
        (pa.nulls(1), ["a single value where a list of 64 numbers belongs"]),
    ],
)
def test_the_problem_of_each_list_of_pixels_that_does_not_fit(values: pa.Array, found: list[str | None]) -> None:
    assert read(DIGITS, values)[1] == found


@given(st.binary(max_size=200), st.integers(0, 80), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_image_or_a_problem(data: bytes, place: int, value: int) -> None:
    damaged = bytearray(encoded(np.eye(8, dtype=np.uint8)))
    damaged[place % len(damaged)] = value
    values, found = read(DIGITS, pa.array([data, bytes(damaged)]))
    assert found[0] is not None
    assert np.isfinite(values).all()


def test_an_endpoint_refuses_pixels_outside_the_range() -> None:
    fit = transform("x", fitted(DIGITS, [[0.0] * 64, [16.0] * 64]))
    for value in (-0.1, 16.1, np.nan, np.inf):
        with pytest.raises(RequestError, match=r"x holds a pixel outside 0\.\.16"):
            fit.apply(np.full((1, 8, 8, 1), value))
    assert fit.tensor.shape == (-1, 8, 8, 1)
    assert fit.apply(fit.example(3))["x"].shape == (3, 64)


def test_an_image_of_one_colour_becomes_zero() -> None:
    assert set(applied(DIGITS, [[3.0] * 64] * 50)["x"].reshape(-1).tolist()) == {0.0}


# The target, and all columns together


def target(kind: Any, values: Any, pieces: int = 1) -> tuple[TargetTransform, Array]:
    column = target_column(TypeAdapter(Target).validate_python({"column": "y", "type": kind}))
    canonical_values, found = column.read(pa.array(values))
    assert found.tolist() == [None] * len(values)
    array = column_array(canonical_values)
    parts = [json.loads(json.dumps(column.partial(part))) for part in np.array_split(array, pieces)]
    return target_transform("y", json.loads(json.dumps(column.fit(parts)))), array


def test_a_number_as_target_comes_back_in_its_unit() -> None:
    truth = load_diabetes().target
    fit, canonical_values = target("number", truth, 5)
    scaled = fit.apply(canonical_values)
    assert (scaled.dtype, scaled.shape, fit.feature, fit.task) == (
        np.float32,
        (442,),
        Feature("y", "number", ()),
        "regression",
    )
    assert abs(scaled.mean(dtype=np.float64)) < 1e-6
    assert abs(scaled.std(dtype=np.float64) - 1) < 1e-6
    np.testing.assert_allclose(fit.unscaled(scaled), truth, rtol=1e-5)
    np.testing.assert_allclose(fit.answers(scaled)["y"], truth, rtol=1e-5)
    np.testing.assert_allclose(fit.loss_scale, truth.std() ** 2)
    assert [tensor.name for tensor in fit.tensors()] == ["y"]
    constant, values = target("number", [0.1] * 999)
    assert constant.apply(values).tolist() == [0.0] * 999
    assert constant.unscaled(np.zeros(1))[0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("values", "classes", "datatype"),
    [
        ([7, 10, 7, -1], [-1, 7, 10], "INT64"),
        (["b", "ä", "b"], ["b", "ä"], "BYTES"),
        ([True, False], ["false", "true"], "BYTES"),
    ],
)
def test_a_category_as_target_comes_back_as_it_was(values: list[Any], classes: list[Any], datatype: str) -> None:
    fit, canonical_values = target("category", values, 2)
    codes = fit.apply(canonical_values)
    assert (codes.dtype, fit.feature.cardinality) == (np.int64, len(classes))
    answer = fit.answers(np.eye(len(classes), dtype=np.float32)[codes] * 3)
    assert [tensor.datatype for tensor in fit.tensors()] == [datatype, "FP32"]
    assert [classes.index(value) for value in answer["y"].tolist()] == codes.tolist()
    np.testing.assert_allclose(answer["probabilities"].sum(axis=1), 1, rtol=1e-6)
    assert answer["probabilities"].dtype == np.float32
    extreme = fit.answers(np.array([[1e30] + [-1e30] * (len(classes) - 1)], np.float32))
    assert extreme["probabilities"][0].tolist() == [1.0] + [0.0] * (len(classes) - 1)


def test_several_numbers_as_target_come_back_in_their_unit() -> None:
    column = target_column(NumberTarget(column="y", type="number", length=2))
    values, found = column.read(pa.array([[1.0, 2.0], [3.0, 6.0], [1.0], [None, 1.0], [1e39, 1.0]]))
    assert found.tolist() == [
        None,
        None,
        "the list holds 1 numbers, not 2",
        "the number is missing or not finite",
        "a number is too large to use",
    ]
    whole = column_array(values)[:2]
    state = json.loads(json.dumps(column.fit([column.partial(whole[:1]), column.partial(whole[1:])])))
    assert (state["mean"], state["length"]) == (3.0, 2)
    target = target_transform("y", state)
    assert target.feature.shape == (2,)
    assert target.tensors()[0].shape == (-1, 2)
    applied = target.apply(whole)
    assert applied.shape == (2, 2)
    assert applied.mean() == pytest.approx(0, abs=1e-6)
    assert target.answers(applied)["y"] == pytest.approx(whole)


def test_a_target_far_from_those_of_the_training_split_is_refused() -> None:
    fit = target_transform("y", {"type": "number", "mean": 0.0, "deviation": 1e-10})
    assert fit.apply(np.array([1.0])).tolist() == [np.float32(1e10)]
    with pytest.raises(RequestError, match="y holds a number too large to use"):
        fit.apply(np.array([1.0, 1e30]))


def test_the_problem_of_each_target_that_does_not_fit() -> None:
    numbers = target_column(NumberTarget(column="y", type="number"))
    assert numbers.read(pa.array([1.0, 1e300]))[1].tolist() == [None, "a number is too large to use"]
    assert numbers.read(pa.array([1.0, None, np.inf]))[1].tolist() == [
        None,
        *["the number is missing or not finite"] * 2,
    ]
    assert numbers.read(pa.array(["1", "b"]))[1].tolist() == [None, "'b' is no number"]
    classes = target_column(CategoryTarget(column="y", type="category"))
    assert classes.read(pa.array(["a", None]))[1].tolist() == [None, "the value is missing"]


def test_columns_apply_each_transform_by_name() -> None:
    specs = {"age": NUMBER, "city": CategoryInput(type="category"), "note": TextInput(type="text", max_length=4)}
    values = {"age": [1.0, 3.0], "city": ["b", "a"], "note": ["a a", "b"]}
    columns = Columns({name: fitted(spec, values[name]) for name, spec in specs.items()})
    result = columns.apply({name: read(spec, values[name])[0] for name, spec in specs.items()})
    assert list(result) == ["age", "city", "note", length_key("note")]
    assert result["age"].tolist() == [[-1.0], [1.0]]
    assert result["city"].tolist() == [[1], [0]]
    assert {name: array.shape for name, array in columns.apply(columns.example(3)).items()} == {
        "age": (3, 1),
        "city": (3, 1),
        "note": (3, 4),
        length_key("note"): (3, 1),
    }
    with pytest.raises(ValueError, match="no transform for 'video'"):
        transform("x", {"type": "video"})


def test_states_are_the_same_bytes_each_time() -> None:
    def digest() -> str:
        states = [
            fitted(NumberInput(type="number", length=10), load_diabetes(scaled=False).data.tolist(), 7),
            fitted(DIGITS, load_digits().data.tolist(), 7),
            fitted(CategoryInput(type="category"), load_iris().target.tolist(), 7),
        ]
        return hashlib.sha256(json.dumps(states).encode()).hexdigest()

    assert digest() == digest()


def test_lists_with_the_channels_first_are_no_images_with_the_channels_last() -> None:
    spec = ImageInput(type="image", size=[4, 5], channels=3)
    pixels = np.arange(60.0).reshape(4, 5, 3)
    last, first = (pa.array([array.tolist()]) for array in (pixels, pixels.transpose(2, 0, 1)))
    assert read(spec, last)[0].reshape(4, 5, 3).tolist() == pixels.tolist()
    assert read(spec, first)[1] == ["the nested lists are 3 x 4 x 5, not 4 x 5 x 3"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_tensors_keep_their_shape() -> None:
    from ray.data.extensions import ArrowTensorArray

    spec = ImageInput(type="image", size=[4, 5], channels=3)
    last = np.arange(120.0).reshape(2, 4, 5, 3)
    first = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    for tensors in (ArrowTensorArray.from_numpy, pa.FixedShapeTensorArray.from_numpy_ndarray):
        values, found = read(spec, column_of(pa.table({"x": tensors(last)}), "x"))
        assert (values.reshape(last.shape).tolist(), found) == (last.tolist(), [None, None])
        _, found = read(spec, column_of(pa.table({"x": tensors(first)}), "x"))
        assert found == ["the nested lists are 3 x 4 x 5, not 4 x 5 x 3"] * 2


def test_texts_without_a_word_in_common_teach_nothing() -> None:
    with pytest.raises(DataError, match="holds no token twice"):
        fitted(TextInput(type="text", tokenizer="word"), ["alpha beta", "gamma delta"])
    assert fitted(TextInput(type="text", tokenizer="word"), ["alpha beta", "alpha delta"])["vocab_size"] == 3


def test_only_what_is_written_as_a_whole_number_is_one() -> None:
    for value in ("--1", "-", "-0", "01", "+1", "1\n", "\u0661", "9" * 19):
        assert vocabulary({value: 1, "2": 1}) == sorted([value, "2"])
    assert vocabulary({"10": 1, "-2": 1, "0": 1}) == ["-2", "0", "10"]
