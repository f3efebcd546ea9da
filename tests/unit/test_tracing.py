"""Spans of requests as a collector gets them: a real one over HTTP, around an endpoint with both of its servers."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from ports import free_port
from tidegate import keys
from tidegate.serving import tracing
from tidegate.serving.batching import Batcher, Rows
from tidegate.serving.exchange import LOGGER, Request, Response
from tidegate.serving.gate import Access, Gate, KeyWatch
from tidegate.serving.grpc_api import GrpcApi
from tidegate.serving.grpc_messages import SERVICE, message
from tidegate.serving.grpc_server import GrpcServer
from tidegate.serving.http_api import HttpApi
from tidegate.serving.http_server import HttpServer
from tidegate.serving.inference import Inference, Loaded
from tidegate.serving.limits import Limits
from tidegate.serving.meter import Meter
from tidegate.serving.quota import Quota
from tidegate.serving.tracing import Tracing
from tidegate.signature import Signature, TensorSpec

WAIT_S = 20.0
SLOW_S = 0.6
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("sum", "FP32", (-1,)),))
PATH = "/v2/models/tiny/infer"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
ERROR, UNSET = 2, 0


def predict(inputs: Rows) -> Rows:
    if (inputs["x"] == 13).any():
        raise ZeroDivisionError("a secret 13")
    if (inputs["x"] == 14).any():
        time.sleep(SLOW_S)
    return {"sum": inputs["x"].sum(axis=1)}


def asked(value: float = 1.0, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [3, 2], "data": [value] * 6}
    return {"inputs": [tensor | changes]}


def message_of(value: float) -> Any:
    request = message("ModelInferRequest")(model_name="tiny")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([value] * 2)
    return request


class Collector:
    """Takes OTLP over HTTP, as Jaeger or an OpenTelemetry Collector does."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []
        self.hangs = threading.Event()
        self.hangs.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.hangs.wait(WAIT_S)
                collector.paths.append(self.path)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def spans(self) -> dict[str, Span]:
        """By name; every name once."""
        found = [span for request in self._resources() for scope in request.scope_spans for span in scope.spans]
        named = {span.name: span for span in found}
        assert len(named) == len(found)
        return named

    @property
    def resource(self) -> dict[str, str | int]:
        (resource,) = {str(found.resource): found.resource for found in self._resources()}.values()
        return plain(resource.attributes)

    def _resources(self) -> list[Any]:
        return [found for request in self.requests for found in request.resource_spans]


def plain(attributes: Any) -> dict[str, str | int]:
    def value(found: KeyValue) -> str | int:
        return found.value.int_value if found.value.HasField("int_value") else found.value.string_value

    return {found.key: value(found) for found in attributes}


@pytest.fixture(name="collector")
def _collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # What else is said in the environment of whoever tests.
    for name in ("TRACES_SAMPLER", "TRACES_SAMPLER_ARG", "SERVICE_NAME", "RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)
    yield collector
    collector.hangs.set()
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


class Endpoint:
    """A served endpoint `tiny`, and clients of it."""

    http: httpx.AsyncClient
    channel: grpc.aio.Channel

    def __init__(self, traced: Tracing | None, access: Access) -> None:
        watch = KeyWatch()
        watch.refresh()
        gate = Gate("tiny", watch, Quota("tiny", lambda _: asyncio.sleep(0, {})))
        gate.set_access(access)
        self.inference = Inference("tiny", Meter(), gate)
        self.inference.tracing = traced

    def load(self) -> None:
        model: Any = SimpleNamespace(signature=SIGNATURE, aligned=lambda inputs: inputs)
        self.inference.loaded = Loaded(3, model, Batcher(predict, 8), Limits())

    async def post(self, body: Any, parent: str = "", **headers: str) -> int:
        headers |= {"traceparent": parent} if parent else {}
        return (await self.http.post(PATH, json=body, headers=headers)).status_code

    async def call(self, request: Any, parent: str, timeout: float = WAIT_S) -> Any:
        method = self.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        try:
            await method(request.SerializeToString(), metadata=(("traceparent", parent),), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def run(test: Callable[[Endpoint], Awaitable[None]], *, loads: bool = True, access: Access | None = None) -> None:
    """Ends when the spans are out, as a replica that drains does."""
    traced = tracing.from_environment("tiny")
    assert traced is not None

    async def bounded() -> None:
        endpoint = Endpoint(traced, access or Access())
        if loads:
            endpoint.load()
        server = HttpServer(HttpApi(endpoint.inference).handle, Limits)
        port = await server.start("127.0.0.1", 0)
        serving = asyncio.create_task(server.run())

        async def health() -> tuple[bool, str]:
            return True, ""

        calls = GrpcServer(GrpcApi(endpoint.inference).call, health, Limits)
        grpc_port = await calls.start("127.0.0.1", 0)
        try:
            async with (
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as endpoint.http,
                grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as endpoint.channel,
            ):
                await asyncio.wait_for(test(endpoint), WAIT_S)
        finally:
            server.should_exit = True
            await serving
            await calls.stop(None)

    asyncio.run(bounded())
    traced.close()


def test_a_request_over_http_is_a_span_below_its_callers(collector: Collector) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.post(asked(), SAMPLED) == 200

    before = time.time_ns()
    run(test)
    span = collector.spans["infer tiny"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.status.code == UNSET
    assert plain(span.attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "tidegate.endpoint": "tiny",
        "tidegate.version": 3,
        "tidegate.rows": 3,
    }
    assert before <= span.start_time_unix_nano < span.end_time_unix_nano <= time.time_ns()


def test_its_parts_are_spans_below_it_one_after_the_other(collector: Collector) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.post(asked(14.0), SAMPLED) == 200

    run(test)
    assert set(collector.spans) == {"infer tiny", "queue", "compute"}
    span, queue, compute = (collector.spans[name] for name in ("infer tiny", "queue", "compute"))
    assert {part.parent_span_id for part in (queue, compute)} == {span.span_id}
    assert {part.trace_id.hex() for part in (queue, compute)} == {TRACE}
    assert span.start_time_unix_nano <= queue.start_time_unix_nano < queue.end_time_unix_nano
    assert queue.end_time_unix_nano == compute.start_time_unix_nano
    assert compute.end_time_unix_nano <= span.end_time_unix_nano
    assert compute.end_time_unix_nano - compute.start_time_unix_nano >= SLOW_S * 1e9


def test_a_request_over_grpc_is_one_too(collector: Collector) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.call(message_of(1.0), SAMPLED) == grpc.StatusCode.OK

    run(test)
    assert set(collector.spans) == {"infer tiny", "queue", "compute"}
    span = collector.spans["infer tiny"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert plain(span.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "OK",
        "tidegate.endpoint": "tiny",
        "tidegate.version": 3,
        "tidegate.rows": 1,
    }


@pytest.mark.parametrize(
    ("loads", "code", "status"), [(False, "UNAVAILABLE", ERROR), (True, "INVALID_ARGUMENT", UNSET)]
)
def test_a_refusal_over_grpc_has_the_code_that_the_client_got(
    loads: bool, code: str, status: int, collector: Collector
) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert (await endpoint.call(message("ModelInferRequest")(model_name="tiny"), SAMPLED)).name == code

    run(test, loads=loads)
    span = collector.spans["infer tiny"]
    assert plain(span.attributes)["rpc.response.status_code"] == code
    assert span.status.code == status


@pytest.mark.parametrize(
    ("loads", "body", "status", "error", "code"),
    [
        (False, asked(), 503, "UnavailableError", ERROR),
        (True, asked(13.0), 500, "ZeroDivisionError", ERROR),
        (True, asked(datatype="INT8"), 400, "RequestError", UNSET),
    ],
)
def test_a_refused_request_says_why_and_is_an_error_where_the_server_is_to_blame(
    loads: bool, body: Any, status: int, error: str, code: int, collector: Collector
) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.post(body, SAMPLED) == status

    run(test, loads=loads)
    span = collector.spans["infer tiny"]
    found = plain(span.attributes)
    assert (found["http.response.status_code"], found["error.type"]) == (status, error)
    assert span.status.code == code
    assert not span.status.message
    # Neither what was asked nor what the model said to it.
    assert not span.events
    assert b"secret" not in b"".join(request.SerializeToString() for request in collector.requests)


def test_who_has_no_key_is_told_apart_by_the_status(collector: Collector) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.post(asked(), SAMPLED, authorization="Bearer hush") == 401

    run(test, access=Access(is_required=True))
    assert set(collector.spans) == {"infer tiny"}
    found = plain(collector.spans["infer tiny"].attributes)
    assert found["error.type"] == "401"
    assert "tidegate.tenant" not in found
    assert b"hush" not in b"".join(request.SerializeToString() for request in collector.requests)


def test_the_tenant_is_that_of_the_key(collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    _, text = keys.create("acme", endpoints=["tiny"])

    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.post(asked(), authorization=f"Bearer {text}") == 200

    run(test, access=Access(is_required=True))
    assert plain(collector.spans["infer tiny"].attributes)["tidegate.tenant"] == "acme"
    assert text.encode() not in b"".join(request.SerializeToString() for request in collector.requests)


def test_a_client_that_goes_leaves_a_span_of_what_was_done_until_then(collector: Collector) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.call(message_of(1.0), UNSAMPLED) == grpc.StatusCode.OK
        assert await endpoint.call(message_of(14.0), SAMPLED, SLOW_S / 3) == grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.sleep(SLOW_S)

    run(test)
    span, compute = collector.spans["infer tiny"], collector.spans["compute"]
    assert plain(span.attributes)["rpc.response.status_code"] == "CANCELLED"
    assert span.status.code == ERROR
    assert compute.end_time_unix_nano == span.end_time_unix_nano
    assert span.end_time_unix_nano - span.start_time_unix_nano < SLOW_S * 1e9


def test_a_request_that_no_pass_took_was_in_the_queue_to_its_end(collector: Collector) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.call(message_of(1.0), UNSAMPLED) == grpc.StatusCode.OK
        busy = asyncio.create_task(endpoint.post(asked(14.0), UNSAMPLED))
        await asyncio.sleep(SLOW_S / 3)
        assert await endpoint.call(message_of(1.0), SAMPLED, SLOW_S / 3) == grpc.StatusCode.DEADLINE_EXCEEDED
        assert await busy == 200

    run(test)
    assert set(collector.spans) == {"infer tiny", "queue"}
    assert collector.spans["queue"].end_time_unix_nano == collector.spans["infer tiny"].end_time_unix_nano


def test_a_caller_that_is_not_sampled_has_none(collector: Collector) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.post(asked(), UNSAMPLED) == 200

    run(test)
    assert collector.requests == []


def test_the_sampler_of_the_environment_decides_where_no_caller_did(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")

    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.post(asked()) == 200
        assert await endpoint.post(asked(), SAMPLED) == 200

    run(test)
    assert collector.spans["infer tiny"].trace_id.hex() == TRACE


@pytest.mark.parametrize(
    "parent",
    ["", "7", SAMPLED[:-3], SAMPLED.upper(), f"ff{SAMPLED[2:]}", f"00-{'0' * 32}-{PARENT}-01", "0" * 5000, "\xff\x80"],
)
def test_a_caller_that_cannot_be_read_is_none(parent: str, collector: Collector) -> None:
    async def test(endpoint: Endpoint) -> None:
        headers = [(b"traceparent", parent.encode("latin-1")), (b"tracestate", b",=,")]
        assert (await endpoint.http.post(PATH, json=asked(), headers=headers)).status_code == 200

    run(test)
    span = collector.spans["infer tiny"]
    assert (span.parent_span_id, span.trace_id.hex() == TRACE) == (b"", False)
    assert collector.spans["compute"].trace_id == span.trace_id


def test_the_service_is_tidegate_until_it_is_named(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.post(asked()) == 200

    run(test)
    assert collector.resource["service.name"] == "tidegate"
    assert {"host.name", "process.pid"} <= set(collector.resource)
    assert collector.paths == ["/v1/traces"]
    collector.requests.clear()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vision")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/elsewhere")
    run(test)
    assert collector.resource["service.name"] == "vision"
    assert collector.resource["deployment.environment.name"] == "test"
    assert collector.paths[-1] == "/elsewhere"


def test_the_answer_goes_before_the_span(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(Tracing, "_record", lambda *_: order.append("span"))

    def reply(_: Response) -> None:
        order.append("answer")

    async def test(endpoint: Endpoint) -> None:
        handle = HttpApi(endpoint.inference).handle
        # Refused at once, and answered.
        for value in ("", 1.0):
            tensor: Any = asked(value)  # type: ignore[arg-type]
            handle(Request("POST", PATH, {}, httpx.Request("POST", "http://x", json=tensor).content), reply)
            await asyncio.sleep(0.1)

    run(test)
    assert order == ["answer", "span", "answer", "span"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_collector_that_does_not_answer_costs_no_request_anything(
    is_there: bool, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setattr(tracing, "FLUSH_S", 0.5)
    monkeypatch.setattr(tracing._COMPLAINTS, "quiet_until", 0.0)
    monkeypatch.setattr(LOGGER, "propagate", True)
    if is_there:
        collector.hangs.clear()
    else:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == LOGGER.name]

    async def test(endpoint: Endpoint) -> None:
        # A hundred that each waited for the collector would not be answered in time.
        for _ in range(100):
            assert await endpoint.post(asked()) == 200
        while not said():
            await asyncio.sleep(0.02)
            assert await endpoint.post(asked()) == 200

    with caplog.at_level(logging.WARNING, LOGGER.name):
        run(test)
    assert len(said()) == 1
    assert said()[0].startswith("Spans may be lost: ")


def test_closing_waits_no_longer_than_said(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.2)
    collector.hangs.clear()

    async def test(endpoint: Endpoint) -> None:
        assert await endpoint.post(asked()) == 200

    begun = time.monotonic()
    run(test)
    assert time.monotonic() - begun < 5.0
    assert collector.requests == []


# Ray warns about its own settings when they are read.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_replica_that_drains_sends_its_last_spans() -> None:
    """By what Serve awaits then, on the class that it makes of ours."""
    from ray import serve

    from tidegate.serving.replica import Replica

    closed: list[str] = []
    for traced in (SimpleNamespace(close=lambda: closed.append("closed")), None):
        replica: Any = SimpleNamespace(_inference=SimpleNamespace(tracing=traced))
        asyncio.run(serve.ingress()(Replica).__del__(replica))
    assert closed == ["closed"]


def test_without_the_setting_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.setenv(name, "")
    assert tracing.from_environment("tiny") is None


@pytest.mark.parametrize("lacks", [True, False])
def test_what_keeps_spans_from_being_sent_is_said_and_keeps_nothing_else(
    lacks: bool, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if lacks:
        monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    else:
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "0")
    monkeypatch.setattr(LOGGER, "propagate", True)
    with caplog.at_level(logging.WARNING, LOGGER.name):
        assert tracing.from_environment("tiny") is None
    # An exporter of another test may still complain in its own thread.
    (record,) = (each for each in caplog.records if each.name == LOGGER.name)
    assert "No spans are sent" in record.getMessage()
    assert ("pip install 'tidegate[otel]'" in record.getMessage()) == lacks
