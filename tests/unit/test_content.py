"""Encoded images and sounds in requests: in JSON as base64, in the binary form as they are, over gRPC, and samples."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from tidegate.content import Sound
from tidegate.errors import RequestError
from tidegate.protocol import HEADER_LENGTH, encode_request, metadata_body, parse_request
from tidegate.serving import grpc_codec
from tidegate.serving.grpc_messages import message
from tidegate.signature import Signature, TensorSpec
from tidegate.transforms.image import ImageTransform
from tones import dialled, encoded

PICTURE = TensorSpec("picture", "FP32", (-1, 4, 6, 3), "image")
SOUND = TensorSpec("sound", "BYTES", (-1,), "audio")
ANSWER = (TensorSpec("label", "INT64", (-1,)),)
PICTURES, SOUNDS = Signature((PICTURE,), ANSWER), Signature((SOUND,), ANSWER)
FILES = [b"\x89PNG\x00\xff rubbish", encoded(dialled("1"))]


def parsed(signature: Signature, **tensor: Any) -> Any:
    body = orjson.dumps({"inputs": [{"name": signature.inputs[0].name} | tensor]})
    return parse_request(body, signature, max_rows=4).inputs[signature.inputs[0].name]


@pytest.mark.parametrize("signature", [PICTURES, SOUNDS])
@pytest.mark.parametrize("as_json", [True, False])
def test_files_come_through_as_they_are(signature: Signature, as_json: bool) -> None:
    (name,) = (spec.name for spec in signature.inputs)
    body = encode_request({name: FILES}, signature, as_json=as_json)
    found = parse_request(body.content, signature, max_rows=4, header_length=body.header_length).inputs[name]
    assert found.tolist() == FILES
    assert (
        parsed(signature, shape=[2, 1], datatype="BYTES", data=[base64.b64encode(f).decode() for f in FILES]).tolist()
        == FILES
    )
    assert HEADER_LENGTH


@pytest.mark.parametrize("is_raw", [True, False])
def test_files_come_through_grpc(is_raw: bool) -> None:
    request = message("ModelInferRequest")()
    tensor = request.inputs.add(name="sound", datatype="BYTES", shape=[2])
    if is_raw:
        request.raw_input_contents.append(b"".join(len(f).to_bytes(4, "little") + f for f in FILES))
    else:
        tensor.contents.bytes_contents.extend(FILES)
    assert grpc_codec.parse_request(request, SOUNDS, max_rows=4).inputs["sound"].tolist() == FILES


def test_samples_come_with_their_rate() -> None:
    samples = [[0.0, 0.5, -1.0], [0.25, 0.0, 0.0]]
    found = parsed(SOUNDS, shape=[2, 3], datatype="FP32", data=samples, parameters={"sampling_rate": 8000})
    assert [(one.samples.tolist(), one.sampling_rate) for one in found] == [(row, 8000) for row in samples]
    (own,) = parsed(SOUNDS, shape=[1, 2], datatype="INT16", data=[-32768, 16384])
    assert (own.samples.tolist(), own.sampling_rate) == ([-1.0, 0.5], 0)
    request = message("ModelInferRequest")()
    tensor = request.inputs.add(name="sound", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([0.5, -0.5])
    tensor.parameters["sampling_rate"].int64_param = 22050
    (sent,) = grpc_codec.parse_request(request, SOUNDS, max_rows=4).inputs["sound"]
    assert isinstance(sent, Sound)
    assert (sent.samples.tolist(), sent.sampling_rate) == ([0.5, -0.5], 22050)
    body = encode_request({"sound": np.array(samples)}, SOUNDS)
    assert [one.samples.tolist() for one in parse_request(body.content, SOUNDS, max_rows=4).inputs["sound"]] == samples


@pytest.mark.parametrize(
    ("signature", "tensor", "words"),
    [
        (SOUNDS, {"shape": [1], "datatype": "BYTES", "data": ["no base64!"]}, "position 0 that is no base64"),
        (SOUNDS, {"shape": [1], "datatype": "BYTES", "data": [3]}, "something else than strings"),
        (SOUNDS, {"shape": [1, 2], "datatype": "BYTES", "data": ["", ""]}, "a file each"),
        (SOUNDS, {"shape": [2], "datatype": "FP32", "data": [0.5, 0.5]}, "expected [rows, samples]"),
        (SOUNDS, {"shape": [1, 2], "datatype": "INT32", "data": [1, 2]}, "samples of int32"),
        (SOUNDS, {"shape": [5], "datatype": "BYTES", "data": [""] * 5}, "5 rows; expected at most 4"),
        (
            SOUNDS,
            {"shape": [1, 1], "datatype": "FP32", "data": [0.5], "parameters": {"sampling_rate": 0}},
            'The sampling_rate of Input "sound" is 0',
        ),
        (
            SOUNDS,
            {"shape": [1, 1], "datatype": "FP32", "data": [0.5], "parameters": {"sampling_rate": "8000"}},
            "sampling_rate",
        ),
        (
            SOUNDS,
            {"shape": [1, 1], "datatype": "FP32", "data": [0.5], "parameters": {"sample_rate": 8000}},
            "parameter 'sample_rate'; expected the samples' rate as sampling_rate",
        ),
        (PICTURES, {"shape": [1, 4, 6, 4], "datatype": "FP32", "data": [0.0] * 96}, "has the shape"),
    ],
)
def test_what_does_not_fit_is_refused(signature: Signature, tensor: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        parsed(signature, **tensor)
    assert words in str(caught.value)


def test_the_metadata_tells_what_bytes_hold() -> None:
    body = metadata_body("a", ["1"], PICTURES)
    assert orjson.loads(body)["inputs"][0]["parameters"] == {"content_type": "image"}
    assert Signature.from_json(orjson.loads(body)) == PICTURES
    foreign = orjson.loads(body)
    foreign["inputs"][0]["parameters"] = {"content_type": "pd"}
    assert Signature.from_json(foreign).inputs[0].content == ""
    assert "parameters" not in orjson.loads(body)["outputs"][0]


def test_an_encoded_image_is_answered_as_its_pixels_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    state = {"shape": [4, 6, 3], "max_value": 255.0, "mean": [0.5, 0.4, 0.3], "deviation": [0.2, 0.2, 0.1]}
    transform = ImageTransform("picture", state)
    plain = transform.apply(pixels[None].astype(np.float32))["picture"]
    found = transform.apply(np.array([file.getvalue()], dtype=object))["picture"]
    assert np.array_equal(found, plain)
    with pytest.raises(RequestError, match="picture, row 1: the bytes are no readable image"):
        transform.apply(np.array([file.getvalue(), b"rubbish"], dtype=object))
