"""The gRPC service of an endpoint on a real server and channel, around a tiny model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tidegate import keys
from tidegate.errors import RequestError
from tidegate.serving import grpc_codec
from tidegate.serving.gate import Access
from tidegate.serving.grpc_api import GrpcApi
from tidegate.serving.grpc_messages import METHODS, SERVICE, message
from tidegate.serving.grpc_server import GrpcServer
from tidegate.signature import DATATYPES
from tiny_endpoint import GOOD, SIGNATURE, Tiny

WAIT_S = 20.0


class Endpoint(Tiny):
    """A served endpoint `tiny`, and a channel to it."""

    channel: grpc.aio.Channel

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self.ongoing: list[int] = []
        self.healthy = True
        self.api = GrpcApi(self.inference)

    async def call(self, method: str, request: Any = None, *, key: str = "", path: str = SERVICE, **fields: Any) -> Any:
        """The answer, or the code and the sentence of a refusal."""
        request = request if request is not None else message(f"{method}Request")(**fields)
        data = request if isinstance(request, bytes) else request.SerializeToString()
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        try:
            answer = await self.channel.unary_unary(f"/{path}/{method}")(data, metadata=metadata, timeout=WAIT_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()
        return message(f"{method}Response").FromString(answer) if path == SERVICE else answer

    async def until_idle(self) -> None:
        """A request is counted down just after its answer has left."""
        while sum(self.ongoing):
            await asyncio.sleep(0.01)

    async def health(self) -> tuple[bool, str]:
        return self.healthy, "success" if self.healthy else "DRAINING"


def run(test: Callable[[Endpoint], Awaitable[None]], access: Access | None = None) -> None:
    async def bounded() -> None:
        endpoint = Endpoint(access or Access())
        server = GrpcServer(endpoint.api.call, endpoint.health, lambda: endpoint.limits, endpoint.ongoing.append)
        port = await server.start("127.0.0.1", 0)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as endpoint.channel:
                await asyncio.wait_for(test(endpoint), WAIT_S)
        finally:
            await server.stop(None)

    asyncio.run(bounded())


def asked(as_bytes: bool, **changes: Any) -> Any:
    """A request for GOOD, as typed contents or as bytes."""
    request = message("ModelInferRequest")(model_name="tiny", id="seven")
    for name, values in {**GOOD, **changes}.items():
        spec = {spec.name: spec for spec in SIGNATURE.inputs}[name]
        array = np.array(values, dtype=DATATYPES[spec.datatype])
        tensor = request.inputs.add(name=name, datatype=spec.datatype, shape=array.shape)
        if as_bytes:
            texts = [str(text).encode() for text in values]
            parts = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
            request.raw_input_contents.append(parts if spec.datatype == "BYTES" else array.tobytes())
        elif spec.datatype == "BYTES":
            tensor.contents.bytes_contents.extend(str(text).encode() for text in values)
        else:
            field = {"FP32": "fp32_contents", "INT64": "int64_contents"}[spec.datatype]
            getattr(tensor.contents, field).extend(array.reshape(-1).tolist())
    return request


@pytest.mark.parametrize("as_bytes", [True, False])
def test_the_answer_comes_as_the_question_came(as_bytes: bool) -> None:
    async def test(endpoint: Endpoint) -> None:
        endpoint.load()
        answer = await endpoint.call("ModelInfer", asked(as_bytes))
        assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "3", "seven")
        assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
            ("sum", "FP32", [2]),
            ("shout", "BYTES", [2]),
        ]
        if as_bytes:
            assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [13.0, 27.0]
            text = "GRÜSSE".encode()
            assert answer.raw_output_contents[1] == b"\x01\0\0\0A" + bytes([len(text)]) + b"\0\0\0" + text
        else:
            assert list(answer.outputs[0].contents.fp32_contents) == [13.0, 27.0]
            assert [text.decode() for text in answer.outputs[1].contents.bytes_contents] == ["A", "GRÜSSE"]
            assert list(answer.raw_output_contents) == []
        await endpoint.until_idle()
        assert endpoint.ongoing == [1, -1]
        assert endpoint.meter.rows == 2

    run(test)


def test_only_what_is_asked_for_is_answered() -> None:
    async def test(endpoint: Endpoint) -> None:
        endpoint.load()
        request = asked(False)
        request.outputs.add(name="shout")
        answer = await endpoint.call("ModelInfer", request)
        assert [output.name for output in answer.outputs] == ["shout"]
        request.outputs.add(name="shout")
        assert await endpoint.call("ModelInfer", request) == (
            "INVALID_ARGUMENT",
            "An output is named twice; expected each output once",
        )
        request = asked(False)
        request.outputs.add(name="sum").parameters["classification"].int64_param = 3
        code, sentence = await endpoint.call("ModelInfer", request)
        assert code == "INVALID_ARGUMENT"
        assert "classification" in sentence

    run(test)


def test_what_it_tells_of_itself() -> None:
    async def test(endpoint: Endpoint) -> None:
        assert (await endpoint.call("ModelReady", name="tiny")).ready is False
        assert (await endpoint.call("ModelMetadata", name="tiny"))[0] == "UNAVAILABLE"
        endpoint.load()
        assert (await endpoint.call("ModelReady", name="tiny")).ready is True
        assert (await endpoint.call("ModelReady", name="tiny", version="3")).ready is True
        assert (await endpoint.call("ModelReady", name="tiny", version="2")).ready is False
        told = await endpoint.call("ModelMetadata", name="tiny", version="3")
        assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [
            ("x", "FP32", [-1, 2]),
            ("word", "BYTES", [-1]),
            ("n", "INT64", [-1]),
        ]
        assert [t.name for t in told.outputs] == ["sum", "shout"]
        config = (await endpoint.call("ModelConfig", name="tiny")).config
        assert config.max_batch_size == 4
        assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [
            ("x", 11, [2]),
            ("word", 13, [1]),
            ("n", 9, [1]),
        ]
        for _ in range(3):
            await endpoint.call("ModelInfer", asked(True))
        (stats,) = (await endpoint.call("ModelStatistics", name="tiny")).model_stats
        assert (stats.inference_count, stats.execution_count) == (6, 3)
        assert stats.inference_stats.success.count == 3
        assert stats.inference_stats.compute_infer.ns > 0

    run(test)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model_name": "other"}, "NOT_FOUND", "no endpoint 'other'"),
        ({"model_version": "4"}, "NOT_FOUND", "version 3 is"),
        ({"inputs": []}, "INVALID_ARGUMENT", "lacks"),
        ({"raw_input_contents": [b"x"]}, "INVALID_ARGUMENT", "one for each"),
        ({"raw_input_contents": [b"x"] * 3}, "INVALID_ARGUMENT", "beside raw_input_contents"),
    ],
)
def test_requests_that_do_not_fit(change: dict[str, Any], code: str, words: str) -> None:
    async def test(endpoint: Endpoint) -> None:
        endpoint.load()
        request = asked(False)
        for field, value in change.items():
            request.ClearField(field)
            request.MergeFrom(message("ModelInferRequest")(**{field: value}))
        found, sentence = await endpoint.call("ModelInfer", request)
        assert found == code
        assert words in sentence

    run(test)


def test_tensors_that_do_not_fit() -> None:
    async def test(endpoint: Endpoint) -> None:
        endpoint.load()

        async def refused(request: Any) -> str:
            code, sentence = await endpoint.call("ModelInfer", request)
            assert code == "INVALID_ARGUMENT"
            return str(sentence)

        request = asked(False)
        request.inputs[0].datatype = "FP64"
        assert "has fp32_contents; expected fp64_contents" in await refused(request)
        request = asked(False)
        request.inputs[0].shape[:] = [2**62, 4]
        assert "at most 8" in await refused(request)
        request = asked(True)
        request.inputs[0].shape[:] = [-1, 2]
        assert "at least 1" in await refused(request)
        request = asked(True)
        request.raw_input_contents[1] = b"\xff\xff\xff\xff"
        assert "ends before" in await refused(request)
        request = asked(False)
        request.inputs[1].contents.bytes_contents[0] = b"\xff"
        assert "UTF-8" in await refused(request)
        request = asked(False)
        request.inputs.append(request.inputs[0])
        assert "twice" in await refused(request)
        request = asked(False)
        request.inputs[0].parameters["shared_memory_region"].string_param = "r"
        assert "shared_memory_region" in await refused(request)
        assert "is no ModelInferRequest" in await refused(b"\xff\xff\xff")
        assert "a word that is not liked" in await refused(asked(False, word=["no", "no"]))
        assert await endpoint.call("ModelInfer", asked(False, word=["boom", "a"])) == (
            "INTERNAL",
            "internal error; see the replica's log",
        )
        code, _ = await endpoint.call("ModelInfer", b"\x0a\x00" * 60_000)
        assert code == "RESOURCE_EXHAUSTED"
        await endpoint.until_idle()

    run(test)


def test_keys_come_in_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    _, text = keys.create("acme", endpoints=["tiny"])
    _, elsewhere = keys.create("acme", endpoints=["other"])

    async def test(endpoint: Endpoint) -> None:
        endpoint.load()
        assert (await endpoint.call("ModelInfer", asked(True)))[0] == "UNAUTHENTICATED"
        assert (await endpoint.call("ModelInfer", asked(True), key=elsewhere))[0] == "PERMISSION_DENIED"
        assert (await endpoint.call("ModelMetadata", name="tiny"))[0] == "UNAUTHENTICATED"
        assert (await endpoint.call("ModelReady", name="tiny")).ready is True
        assert (await endpoint.call("ModelInfer", asked(True), key=text)).id == "seven"
        assert endpoint.meter.traffic["acme"].statuses == {200: 1}
        assert endpoint.meter.traffic[""].statuses == {401: 1, 403: 1}

    run(test, Access(is_required=True))


def test_the_load_balancer_learns_of_draining() -> None:
    async def test(endpoint: Endpoint) -> None:
        path = "ray.serve.RayServeAPIService"
        assert await endpoint.call("Healthz", b"", path=path) == b"\x0a\x07success"
        endpoint.healthy = False
        assert await endpoint.call("Healthz", b"", path=path) == ("UNAVAILABLE", "DRAINING")

    run(test)


def test_every_method_of_the_table_is_answered() -> None:
    async def test(endpoint: Endpoint) -> None:
        endpoint.load()
        for method in METHODS:
            fields = {"model_name": "tiny"} if method == "ModelInfer" else {}
            if "name" in message(f"{method}Request").DESCRIPTOR.fields_by_name:
                fields = {"name": "tiny"}
            answer = await endpoint.call(method, **fields)
            assert not isinstance(answer, tuple) or answer[0] in ("INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND"), (
                method
            )

    run(test)


@given(st.binary(max_size=200))
def test_any_message_is_read_or_refused(data: bytes) -> None:
    try:
        request = message("ModelInferRequest").FromString(data)
    except DecodeError:
        return
    with pytest.raises(RequestError):
        grpc_codec.parse_request(request, SIGNATURE, max_rows=8)
