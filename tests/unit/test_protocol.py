from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tidegate import protocol
from tidegate.errors import ArtifactError, ClusterError, RequestError
from tidegate.protocol import DATATYPES, InferRequest, Signature, TensorSpec, parse_request

IMAGE = TensorSpec("image", "FP32", (-1, 2, 3))
COUNT = TensorSpec("count", "INT8", (-1, 1))
TEXT = TensorSpec("text", "BYTES", (-1,))
FLAG = TensorSpec("flag", "BOOL", (-1,))
SERIES = TensorSpec("series", "FP64", (-1, -1))
OUTPUTS = (TensorSpec("probability", "FP32", (-1, 2)), TensorSpec("label", "BYTES", (-1,)))
MIXED = Signature((IMAGE, COUNT, TEXT, FLAG, SERIES), OUTPUTS)
JSON_DATATYPES = sorted(DATATYPES.keys() - {"FP16"})
FLOAT_MAX = float(np.finfo(np.float32).max)


def tensor(name: str, shape: list[Any], datatype: str, data: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def mixed_document() -> dict[str, Any]:
    return {
        "id": "seven",
        "parameters": {"binary_data_output": True, "note": "x", "k": 1.5},
        "inputs": [
            tensor("image", [2, 2, 3], "FP32", [[[0.5, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]),
            tensor("count", [2, 1], "INT8", [-128, 127]),
            tensor("text", [2], "BYTES", ["", "Grüße"]),
            tensor("flag", [2], "BOOL", [True, False]),
            tensor("series", [2, 3], "FP64", [1, 2, 3, 4, 5, 6.25]),
        ],
        "outputs": [{"name": "label", "parameters": {"binary_data": False}}],
    }


def single(spec: TensorSpec, shape: list[Any], data: Any, datatype: str | None = None) -> np.ndarray[Any, Any]:
    body = orjson.dumps({"inputs": [tensor(spec.name, shape, datatype or spec.datatype, data)]})
    return parse_request(body, Signature((spec,), OUTPUTS), max_rows=8).inputs[spec.name]


def assert_fits(request: InferRequest, signature: Signature, max_rows: int) -> None:
    assert sorted(request.inputs) == sorted(spec.name for spec in signature.inputs)
    rows = {len(array) for array in request.inputs.values()}
    assert len(rows) == 1
    assert 1 <= rows.pop() <= max_rows
    for spec in signature.inputs:
        array = request.inputs[spec.name]
        assert array.dtype == DATATYPES[spec.datatype]
        assert array.flags.c_contiguous
        assert all(want in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True))
        if spec.datatype == "BYTES":
            assert all(type(value) is str for value in array.flat)
        elif spec.datatype.startswith("FP"):
            assert np.isfinite(array).all()
    assert set(request.outputs) <= {spec.name for spec in signature.outputs}
    assert request.outputs
    assert request.id is None or isinstance(request.id, str)


@st.composite
def tensors(draw: st.DrawFn, rows: int, name: str) -> tuple[TensorSpec, np.ndarray[Any, Any]]:
    datatype = draw(st.sampled_from(JSON_DATATYPES))
    inner = draw(st.lists(st.integers(1, 3), max_size=3))
    dtype = DATATYPES[datatype]
    if datatype == "BYTES":
        elements: st.SearchStrategy[Any] = st.text(max_size=6)
    elif dtype.kind == "f":
        elements = st.floats(allow_nan=False, allow_infinity=False, width=dtype.itemsize * 8)  # type: ignore[arg-type]
    else:
        elements = hnp.from_dtype(dtype)
    array = draw(hnp.arrays(dtype, (rows, *inner), elements=elements, fill=st.nothing()))
    shape = [-1, *(draw(st.sampled_from([-1, size])) for size in inner)]
    return TensorSpec(name, datatype, tuple(shape)), array


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[TensorSpec, np.ndarray[Any, Any]]]:
    rows = draw(st.integers(1, 4))
    return [draw(tensors(rows, name)) for name in "abc"[: draw(st.integers(1, 3))]]


@given(batches(), st.booleans(), st.none() | st.text(max_size=4), st.booleans())
@settings(deadline=None, max_examples=200)
def test_a_request_survives_the_way_from_client_to_server(
    batch: list[tuple[TensorSpec, np.ndarray[Any, Any]]], told: bool, id: str | None, as_json: bool
) -> None:
    signature = Signature(tuple(spec for spec, _ in batch), OUTPUTS)
    inputs = {spec.name: array for spec, array in batch}
    body, length = protocol.encode_request(inputs, signature if told else None, id, as_json=as_json)
    assert (length is None) == as_json
    request = parse_request(body, signature, max_rows=4, header_length=length)
    assert_fits(request, signature, 4)
    assert request.id == id
    assert request.outputs == ("probability", "label")
    assert request.binary == (frozenset() if as_json else {"probability", "label"})
    for spec, array in batch:
        np.testing.assert_array_equal(request.inputs[spec.name], array, strict=True)


@given(batches(), st.none() | st.text(max_size=4), st.sets(st.sampled_from("abc")))
@settings(deadline=None, max_examples=200)
def test_a_response_survives_the_way_from_server_to_client(
    batch: list[tuple[TensorSpec, np.ndarray[Any, Any]]], id: str | None, as_bytes: set[str]
) -> None:
    signature = Signature(OUTPUTS, tuple(spec for spec, _ in batch))
    rows = np.zeros((len(batch[0][1]), 2), dtype=np.float32)
    wanted = frozenset(as_bytes & {spec.name for spec, _ in batch})
    request = InferRequest({"probability": rows}, id, (), wanted)
    outputs = {spec.name: array for spec, array in batch}
    body, length = protocol.encode_response("m", "3", signature, outputs, request)
    assert (length is not None) == bool(wanted)
    answer = protocol.parse_response(body, length)
    assert orjson.loads(body[:length]).get("id") == id
    assert list(answer) == [spec.name for spec, _ in batch]
    for spec, array in batch:
        np.testing.assert_array_equal(answer[spec.name], array, strict=True)


@given(batches())
@settings(deadline=None, max_examples=50)
def test_nested_and_flat_data_mean_the_same(batch: list[tuple[TensorSpec, np.ndarray[Any, Any]]]) -> None:
    signature = Signature(tuple(spec for spec, _ in batch), OUTPUTS)
    items = [tensor(spec.name, list(array.shape), spec.datatype, array.tolist()) for spec, array in batch]
    request = parse_request(orjson.dumps({"inputs": items}), signature, max_rows=4)
    for spec, array in batch:
        np.testing.assert_array_equal(request.inputs[spec.name], array, strict=True)


def test_the_whole_form_is_read() -> None:
    request = parse_request(orjson.dumps(mixed_document()), MIXED, max_rows=2)
    assert_fits(request, MIXED, 2)
    assert (request.id, request.outputs) == ("seven", ("label",))
    assert request.inputs["image"].tolist() == np.array([0.5, *range(1, 12)]).reshape(2, 2, 3).tolist()
    assert request.inputs["count"].tolist() == [[-128], [127]]
    assert request.inputs["text"].tolist() == ["", "Grüße"]
    assert request.inputs["series"].shape == (2, 3)


def mutate(value: Any, rng: random.Random) -> Any:
    """A copy of `value` with one place in it replaced, dropped, doubled or moved."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        places += [(node, key) for key in keys]
        stack += [node[key] for key in keys if isinstance(node[key], dict | list)]
    node, key = rng.choice(places)
    choice = rng.random()
    if choice < 0.6:
        node[key] = rng.choice(STRANGE)
    elif choice < 0.75:
        del node[key]
    elif choice < 0.9 and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    else:
        other, other_key = rng.choice(places)
        node[key] = copy.deepcopy(other.get(other_key)) if isinstance(other, dict) else None
    return value


DEEP: list[Any] = []
for _ in range(2000):
    DEEP = [DEEP]
STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 255, 256, 2**31, 2**63, 2**64 - 1, -(2**63), 0.5, 1e39, -1e308, 1e-320, "", "1",
    "NaN", "FP32", "FP64", "FP16", "INT8", "INT64", "UINT64", "BYTES", "BOOL", "image", "text", [], [[]], {}, [None],
    [1, 2], [2, 6], [2**40, 2**40], [1] * 40, {"name": "label"}, {"a": None}, {"binary_data_size": 4}, "@deep",
]  # fmt: skip


def assert_parsed_or_refused(body: bytes) -> bool:
    """Whether it was parsed."""
    try:
        request = parse_request(body, MIXED, max_rows=4)
    except RequestError as error:
        refusal = str(error)
    else:
        assert_fits(request, MIXED, 4)
        return True
    assert 0 < len(refusal) < 2000
    return False


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_a_mutated_document_is_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(15):
        document = mixed_document()
        for _ in range(rng.randint(1, 3)):
            document = mutate(document, rng) or mixed_document()
        assert_parsed_or_refused(orjson.dumps(document))


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_mutated_bytes_are_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(15):
        body = bytearray(orjson.dumps(mixed_document()))
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(body))
            piece = rng.choice([rng.randbytes(rng.randint(0, 3)), b"e999", b"[", b"-", b"NaN", b"null", b'"', b"\xff"])
            body[start : start + rng.randint(0, 3)] = piece
        assert_parsed_or_refused(bytes(body))


def test_the_unmutated_document_is_read() -> None:
    assert assert_parsed_or_refused(orjson.dumps(mixed_document()))


@given(st.binary(max_size=40) | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(orjson.dumps))
@settings(deadline=None, max_examples=100)
def test_anything_else_is_refused(body: bytes) -> None:
    assert not assert_parsed_or_refused(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"[]", "is a list"),
        (b"[" * 5000, "not JSON"),
        (b'{"id":' + b"[" * 900 + b"]" * 900 + b"}", '"inputs" is missing'),
        (b'{"id": "\xff"}', "not JSON"),
        (b'{"inputs": [NaN]}', "not JSON"),
        (b'{"inputs": [1e400]}', "not JSON"),
        (b'{"inputs": []}', "empty list"),
        (b'{"inputs": [3]}', "is 3"),
        (b'{"inputs": {}}', "is an object"),
    ],
)
def test_bodies_of_a_wrong_form(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_request(body, MIXED, max_rows=4)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["id"], 7, '"id" is 7'),
        (["id"], [[]], '"id" is a list'),
        (["ids"], "x", "unknown key 'ids'"),
        (["parameters"], [], "parameters of the request body"),
        (["parameters", "x"], [1], "parameters of the request body"),
        (["outputs"], [{"name": "nope"}], "no output 'nope'"),
        (["outputs"], [{"name": "label"}] * 2, "an output twice"),
        (["outputs"], "label", "\"outputs\" is 'label'"),
        (["inputs", 0, "name"], "nope", "no input 'nope'"),
        (["inputs", 0, "name"], ["image"], "has the name a list"),
        (["inputs", 0, "name"], "count", '"count" has the datatype FP32'),
        (["inputs", 2, "name"], "text2", "no input 'text2'"),
        (["inputs", 0, "parameters"], {"x": {}}, 'parameters of an entry of "inputs"'),
        (["inputs", 0, "extra"], 1, "unknown key 'extra'"),
        (["inputs", 0, "datatype"], "float32", "datatype 'float32'.*FP32"),
        (["inputs", 0, "datatype"], "FP16", "no JSON form"),
        (["inputs", 0, "datatype"], "BYTES", "expected FP32 or FP64, or an integer"),
        (["inputs", 0, "datatype"], ["FP32"], "datatype a list"),
        (["inputs", 1, "datatype"], "FP32", "expected INT8, or another integer"),
        (["inputs", 3, "datatype"], "INT8", "expected BOOL"),
        (["inputs", 0, "shape"], [2, 6.0], "holds 6.0"),
        (["inputs", 0, "shape"], [True, 6], "holds true"),
        (["inputs", 0, "shape"], [-2, -6], "holds -2"),
        (["inputs", 0, "shape"], [0, 6], "holds 0"),
        (["inputs", 0, "shape"], [], "of 0 axes"),
        (["inputs", 0, "shape"], [1] * 33, "of 33 axes"),
        (["inputs", 0, "shape"], "2", "shape of Input \"image\" is '2'"),
        (["inputs", 0, "shape"], [4, 3], r"has the shape \[4, 3\]; expected \[-1, 2, 3\]"),
        (["inputs", 0, "shape"], [2, 3, 2], r"has the shape \[2, 3, 2\]"),
        (["inputs", 0, "shape"], [2, 2**62, 2**62], "has the shape"),
        (["inputs", 0, "shape"], [5, 2, 3], "has 5 rows; expected at most 4"),
        (["inputs", 4, "shape"], [2, 2**62], "has 6 values"),
        (["inputs", 4, "shape"], [3, 2], 'differ in rows: "image" 2.*"series" 3'),
        (["inputs", 4, "shape"], [2], "has the shape"),
        (["inputs", 0, "data"], [1.0] * 11, "has 11 values"),
        (["inputs", 0, "data"], [], "has 0 values"),
        (["inputs", 0, "data"], [[1.0] * 6] * 2, "nested lists"),
        (["inputs", 0, "data"], [[[1, 2, 3]] * 2, [[1, 2, 3], 4]], "nested lists"),
        (["inputs", 0, "data"], [[[1, 2, 3]] * 2, [[1, 2, 3], [4]]], "nested lists"),
        (["inputs", 0, "data"], [[[1, 2, [3]]] * 2] * 2, "holds a list at position 2"),
        (["inputs", 0, "data"], 1.0, "is 1.0"),
        (["inputs", 0, "data"], [*[1.0] * 11, True], "holds true at position 11"),
        (["inputs", 0, "data"], [*[1.0] * 11, None], "holds null at position 11"),
        (["inputs", 0, "data"], [*[1.0] * 11, "NaN"], "holds 'NaN' at position 11"),
        (["inputs", 0, "data"], [*[1.0] * 11, 1e39], "a number that FP32 cannot"),
        (["inputs", 1, "data"], [1, 128], "a number that INT8 cannot"),
        (["inputs", 1, "data"], [1, 1.0], "holds 1.0 at position 1; expected integers"),
        (["inputs", 1, "data"], [1, 2**64 - 1], "a number that INT8 cannot"),
        (["inputs", 2, "data"], ["a", 1], "holds 1 at position 1; expected strings"),
        (["inputs", 3, "data"], [True, 1], "holds 1 at position 1; expected true or false"),
    ],
)
def test_each_mistake_is_named(path: list[Any], value: Any, message: str) -> None:
    document = node = mixed_document()
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(RequestError, match=message):
        parse_request(orjson.dumps(document), MIXED, max_rows=4)


def test_missing_and_doubled_inputs_are_named() -> None:
    document = mixed_document()
    removed = document["inputs"].pop(1)
    with pytest.raises(RequestError, match='lacks "count"'):
        parse_request(orjson.dumps(document), MIXED, max_rows=4)
    document["inputs"] += [removed, removed]
    with pytest.raises(RequestError, match='"count" is given twice'):
        parse_request(orjson.dumps(document), MIXED, max_rows=4)


def test_data_left_out_for_the_binary_form_is_refused_with_a_remedy() -> None:
    document = mixed_document()
    del document["inputs"][0]["data"]
    document["inputs"][0]["parameters"] = {"binary_data_size": 48}
    with pytest.raises(RequestError, match="Inference-Header-Content-Length"):
        parse_request(orjson.dumps(document), MIXED, max_rows=4)


@pytest.mark.parametrize(
    ("wanted", "given", "shape"),
    [
        ((-1, 8, 8), [2, 64], (2, 8, 8)),
        ((-1, 64), [2, 8, 8], (2, 64)),
        ((-1, 1), [2], (2, 1)),
        ((-1,), [2, 1, 1], (2,)),
        ((-1, 1, 8, 8), [2, 8, 8], (2, 1, 8, 8)),
        ((-1, 1, 8, 8), [2, 8, 8, 1], (2, 1, 8, 8)),
        ((-1, -1, 4), [2, 3, 4], (2, 3, 4)),
    ],
)
def test_shapes_that_mean_the_same_are_taken(wanted: tuple[int, ...], given: list[int], shape: tuple[int, ...]) -> None:
    count = math.prod(given)
    array = single(TensorSpec("x", "INT64", wanted), given, list(range(count)))
    assert array.shape == shape
    assert array.reshape(-1).tolist() == list(range(count))


@pytest.mark.parametrize(
    ("wanted", "given"),
    [((-1, 3, 4, 4), [1, 4, 4, 3]), ((-1, 2, 3), [1, 3, 2]), ((-1, -1, 4), [1, 12]), ((-1, 4), [4])],
)
def test_shapes_of_another_order_are_refused(wanted: tuple[int, ...], given: list[int]) -> None:
    with pytest.raises(RequestError, match="has the shape"):
        single(TensorSpec("x", "INT64", wanted), given, [0] * math.prod(given))


@pytest.mark.parametrize(
    ("wanted", "given", "data"),
    [
        ("FP32", "FP64", [0.1, FLOAT_MAX]),
        ("FP64", "FP32", [0.5, -1.0]),
        ("FP32", "INT64", [2**24, -(2**62)]),
        ("FP32", "UINT8", [0, 255]),
        ("FP64", "UINT64", [2**53, 2**63]),
        ("INT64", "UINT64", [0, 2**63 - 1]),
        ("UINT8", "INT64", [0, 255]),
        ("UINT64", "INT8", [0, 127]),
    ],
)
def test_datatypes_that_hold_the_values_are_taken(wanted: str, given: str, data: list[Any]) -> None:
    array = single(TensorSpec("x", wanted, (-1,)), [2], data, given)
    np.testing.assert_array_equal(array, np.array(data, dtype=DATATYPES[wanted]), strict=True)


@pytest.mark.parametrize(
    ("wanted", "given", "data"),
    [
        ("FP32", "FP64", [1e39, 0.0]),
        ("FP32", "FP32", [-1e39, 0.0]),
        ("FP32", "INT64", [2**24 + 1, 0]),
        ("FP64", "INT64", [2**53 + 1, 0]),
        ("FP64", "UINT64", [2**64 - 1, 0]),
        ("INT64", "UINT64", [2**63, 0]),
        ("UINT8", "INT64", [256, 0]),
        ("UINT64", "INT8", [-1, 0]),
        ("INT64", "INT8", [200, 0]),
    ],
)
def test_values_the_datatype_cannot_hold_are_refused(wanted: str, given: str, data: list[Any]) -> None:
    with pytest.raises(RequestError, match="a number that"):
        single(TensorSpec("x", wanted, (-1,)), [2], data, given)


def test_an_integer_beyond_64_bits_is_refused() -> None:
    body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"UINT64","data":[18446744073709551616]}]}'
    with pytest.raises(RequestError, match="expected integers for UINT64"):
        parse_request(body, Signature((TensorSpec("x", "UINT64", (-1,)),), OUTPUTS), max_rows=1)


ROWS = InferRequest({"image": np.zeros((2, 2, 3), np.float32)}, None, ())
GOOD = {"probability": np.full((2, 2), 0.5, np.float32), "label": np.array(["a", "b"], dtype=object)}


def test_a_response_holds_what_was_asked_for_in_that_order() -> None:
    request = InferRequest(ROWS.inputs, "i", ("label", "probability"))
    body = orjson.loads(protocol.encode_response("m", "3", MIXED, GOOD, request).content)
    assert body == {
        "model_name": "m",
        "model_version": "3",
        "id": "i",
        "outputs": [
            {"name": "label", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]},
            {"name": "probability", "shape": [2, 2], "datatype": "FP32", "data": [0.5] * 4},
        ],
    }
    request = InferRequest(ROWS.inputs, None, ("label",))
    only = orjson.loads(protocol.encode_response("m", None, MIXED, GOOD, request).content)
    assert only.keys() == {"model_name", "outputs"}
    assert [output["name"] for output in only["outputs"]] == ["label"]


def test_a_slice_of_a_batch_is_written_row_major() -> None:
    batch = np.arange(12, dtype=np.float32).reshape(2, 6).T
    body = protocol.encode_response("m", "1", MIXED, {**GOOD, "probability": batch[2:4]}, ROWS)
    assert protocol.parse_response(body.content)["probability"].tolist() == batch[2:4].tolist()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("probability", np.full((2, 2), 1e39), "a number that FP32 cannot"),
        ("probability", np.zeros((1, 2), np.float32), "the shape"),
        ("probability", np.zeros((2, 3), np.float32), "the shape"),
        ("probability", np.zeros(4, np.float32), "the shape"),
        ("probability", np.zeros((2, 2), bool), "holds BOOL"),
        ("probability", None, "answered nothing"),
        ("label", np.array(["a", 1], dtype=object), "object"),
        ("label", np.array(["a", "\ud800"], dtype=object), "cannot hold"),
        ("label", np.zeros(2), "holds FP64"),
    ],
)
def test_a_wrong_answer_of_the_model_is_an_artifact_error(name: str, value: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        protocol.encode_response("m", "1", MIXED, {**GOOD, name: value}, ROWS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_the_model_has_no_finite_answer_to_are_the_clients_fault(value: float) -> None:
    with pytest.raises(RequestError, match='"probability" to these inputs is not finite'):
        protocol.encode_response("m", "1", MIXED, {**GOOD, "probability": np.array([[0.5, value]] * 2)}, ROWS)


def test_a_request_is_cast_to_the_signature() -> None:
    inputs = {
        "image": np.arange(6, dtype=">f8").reshape(1, 3, 2).transpose(0, 2, 1),
        "count": [5],
        "text": np.array(["é"]),
        "flag": [True],
        "series": [[1, 2]],
    }
    items = {item["name"]: item for item in orjson.loads(protocol.encode_request(inputs, MIXED).content)["inputs"]}
    assert {name: item["datatype"] for name, item in items.items()} == {s.name: s.datatype for s in MIXED.inputs}
    assert items["image"] == tensor("image", [1, 2, 3], "FP32", [0.0, 2.0, 4.0, 1.0, 3.0, 5.0])
    assert items["text"]["data"] == ["é"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": [[0.5, math.nan]]}, "NaN or infinity"),
        ({"image": ["a"]}, "holds BYTES; expected FP32"),
        ({"image": [[1.0], [1.0, 2.0]]}, "no array"),
        ({"image": 3.0}, "single value"),
        ({"text": "a sentence"}, "single value"),
        ({"text": ["a", 1]}, "not mixed"),
        ({"text": ["\ud800"]}, "JSON"),
        ({"text": np.array([b"a"])}, "not mixed"),
        ({"count": [300]}, "a number that INT8 cannot"),
        ({"count": [0.5]}, "holds FP64"),
        ({"other": np.zeros(1, np.float16)}, "no JSON form"),
        ({"other": [1j]}, "complex128"),
        ({"other": [2**70]}, "not mixed"),
    ],
)
def test_a_client_is_told_what_it_cannot_send(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        protocol.encode_request(inputs, MIXED)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"outputs": []}', b'{"outputs": [{"name": "a"}]}'])
def test_an_answer_that_is_no_response_is_a_cluster_error(body: bytes) -> None:
    with pytest.raises(ClusterError, match="no inference response"):
        protocol.parse_response(body)


def test_the_signature_survives_json() -> None:
    assert Signature.from_json(orjson.loads(orjson.dumps(MIXED.to_json()))) == MIXED


GOOD_TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""}, {"name": 3}, {"name": None}, {"datatype": "fp32"}, {"datatype": []}, {"datatype": None},
        {"shape": []}, {"shape": None}, {"shape": [3]}, {"shape": [-1, 0]}, {"shape": [-1, -2]}, {"shape": [-1, True]},
        {"shape": [-1, 2.0]}, {"shape": "-1"}, {"shape": [-1] * 33},
    ],
)  # fmt: skip
def test_a_rubbish_tensor_description_is_an_artifact_error(change: dict[str, Any]) -> None:
    assert TensorSpec.from_json(GOOD_TENSOR) == TensorSpec("x", "FP32", (-1, 3))
    with pytest.raises(ArtifactError, match="signature"):
        TensorSpec.from_json({**GOOD_TENSOR, **change})


@pytest.mark.parametrize(
    "value",
    [
        None, [], {}, DEEP, {"inputs": [GOOD_TENSOR]}, {"inputs": [], "outputs": [GOOD_TENSOR]},
        {"inputs": [GOOD_TENSOR] * 2, "outputs": [GOOD_TENSOR]}, {"inputs": {"x": 1}, "outputs": [GOOD_TENSOR]},
        {"inputs": [DEEP], "outputs": [GOOD_TENSOR]}, {"inputs": [None], "outputs": [GOOD_TENSOR]},
    ],
)  # fmt: skip
def test_a_rubbish_signature_is_an_artifact_error(value: Any) -> None:
    with pytest.raises(ArtifactError, match="signature"):
        Signature.from_json(value)


def test_the_small_bodies_have_the_shapes_of_the_protocol() -> None:
    assert orjson.loads(protocol.live_body()) == {"live": True}
    assert orjson.loads(protocol.ready_body(False)) == {"ready": False}
    assert orjson.loads(protocol.ready_body(True, "m")) == {"name": "m", "ready": True}
    assert orjson.loads(protocol.server_body("tidegate", "0.1")) == {
        "name": "tidegate",
        "version": "0.1",
        "extensions": [],
    }
    assert orjson.loads(protocol.models_body({"b": False, "a": True})) == {
        "models": [{"name": "a", "ready": True}, {"name": "b", "ready": False}]
    }
    assert orjson.loads(protocol.error_body("no\ud800")) == {"error": "no?"}
    metadata = orjson.loads(protocol.metadata_body("m", ["1", "2"], MIXED))
    assert metadata == {"name": "m", "versions": ["1", "2"], "platform": "tidegate", **MIXED.to_json()}


def test_a_gap_in_a_column_is_named_by_its_row() -> None:
    with pytest.raises(RequestError, match=r'Input "age" has no value in row 1 and 1 more; .* Fill or drop those rows'):
        protocol.encode_request({"age": [1.0, None, 3.0, None]})
