"""A span for each inference request, sent to a collector by OpenTelemetry's SDK, which reads its own variables itself.

Made when a request has ended, from the times that were taken anyway: until then a request that is traced costs what any
other does. Names are those of OpenTelemetry's conventions where it has some, else `tidegate.*`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Literal, NamedTuple

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tidegate import settings
from tidegate.serving.batching import Ticket
from tidegate.serving.exchange import LOGGER, HttpError
from tidegate.serving.grpc_messages import SERVICE
from tidegate.serving.grpc_server import CODES

FLUSH_S = 2.0
"""How long a replica that ends waits for the collector to take its last spans."""
QUIET_S = 300.0
"""What the SDK complains of is in the replica's log at most once in so long: a dead collector fails every batch."""
_NS = 1_000_000_000
_GONE = 499

Attributes = dict[str, str | int]
Protocol = Literal["http", "grpc"]


class Ended(NamedTuple):
    """A request that has ended. Times are `time.perf_counter()`; `computed` is 0 for a pass without an end."""

    headers: Mapping[bytes, bytes]
    protocol: Protocol
    tenant: str
    version: int | None
    ticket: Ticket | None
    status: int
    error: Exception | None
    arrived: float
    computed: float
    left: float


class Tracing:
    """Sends the spans of one endpoint's requests, in a thread of its own."""

    def __init__(self, endpoint: str, provider: TracerProvider) -> None:
        self._endpoint = endpoint
        self._provider = provider
        self._tracer = provider.get_tracer("tidegate")
        self._parent = TraceContextTextMapPropagator()

    def tell(self, ended: Ended) -> None:
        """Not at once: the answer goes first."""
        asyncio.get_running_loop().call_soon(self._record, ended)

    def close(self) -> None:
        """Sends what is left, for at most FLUSH_S."""
        thread = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        thread.start()
        thread.join(FLUSH_S)

    def _record(self, ended: Ended) -> None:
        zero = time.time_ns() - int(time.perf_counter() * _NS)

        def at(counter: float) -> int:
            return zero + int(counter * _NS)

        span = self._tracer.start_span(
            f"infer {self._endpoint}",
            self._parent.extract(_carrier(ended.headers), Context()),
            SpanKind.SERVER,
            start_time=at(ended.arrived),
        )
        if not span.is_recording():
            return
        span.set_attributes(_attributes(self._endpoint, ended))
        if _is_failure(ended.status):
            span.set_status(StatusCode.ERROR)
        context = trace.set_span_in_context(span, Context())
        for name, start, end in _parts(ended):
            self._tracer.start_span(name, context, start_time=at(start)).end(at(end))
        span.end(at(ended.left))


def from_environment(endpoint: str) -> Tracing | None:
    """None where no collector is named, or nothing can be sent to it, which is in the replica's log.

    As an error, there and later: what is less Serve keeps back until it has a thousand lines of it.
    """
    if not any(setting.text() for setting in settings.TRACING):
        return None
    logging.getLogger("opentelemetry").addHandler(_COMPLAINTS)
    try:
        # An extra of Tidegate's; the SDK itself comes with Ray.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ImportError as error:
        LOGGER.error("No spans are sent: %s; pip install 'tidegate[otel]' on every node.", error)
        return None
    except (ValueError, OSError) as error:
        LOGGER.error("No spans are sent: %s; correct the variables OTEL_*.", error)
        return None
    return Tracing(endpoint, provider)


def _is_failure(status: int) -> bool:
    """Whether the server is to blame. It may be for one that is gone: that was told, perhaps, that it took too long."""
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == _GONE


def _resource() -> Resource:
    known: Attributes = {"service.name": "tidegate", "host.name": socket.gethostname(), "process.pid": os.getpid()}
    # Given attributes would win over those of the environment.
    return Resource.create(known).merge(OTELResourceDetector().detect())


def _carrier(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    names = (b"traceparent", b"tracestate")
    return {name.decode(): headers[name].decode("latin-1") for name in names if name in headers}


def _attributes(endpoint: str, ended: Ended) -> Attributes:
    found: Attributes = {"tidegate.endpoint": endpoint}
    if ended.protocol == "grpc":
        found |= {"rpc.system.name": "grpc", "rpc.method": f"{SERVICE}/ModelInfer"}
        found["rpc.response.status_code"] = _code(ended.status).name
    else:
        found |= {"http.request.method": "POST", "http.response.status_code": ended.status}
    if ended.tenant:
        found["tidegate.tenant"] = ended.tenant
    if ended.version is not None:
        found["tidegate.version"] = ended.version
    if ended.ticket is not None:
        found["tidegate.rows"] = ended.ticket.num_rows
    if ended.status >= HTTPStatus.BAD_REQUEST:
        found["error.type"] = _error_type(ended)
    return found


def _code(status: int) -> grpc.StatusCode:
    special = {200: grpc.StatusCode.OK, _GONE: grpc.StatusCode.CANCELLED}
    return special.get(status) or CODES.get(HTTPStatus(status), grpc.StatusCode.INTERNAL)


def _error_type(ended: Ended) -> str:
    """The class says more than the status, but for that which all refusals have. No message: it may quote a request."""
    if ended.error is None or isinstance(ended.error, HttpError):
        return str(ended.status)
    return type(ended.error).__name__


def _parts(ended: Ended) -> list[tuple[str, float, float]]:
    """Where the time of the request went: name, start and end."""
    ticket = ended.ticket
    if ticket is None:
        return []
    if not ticket.started:
        return [("queue", ticket.arrived, ended.left)]
    return [("queue", ticket.arrived, ticket.started), ("compute", ticket.started, ended.computed or ended.left)]


class _Complaints(logging.Handler):
    """Takes what the SDK logs to the replica's log, now and then."""

    quiet_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() >= self.quiet_until:
            self.quiet_until = time.monotonic() + QUIET_S
            LOGGER.error("Spans may be lost: %s", record.getMessage())


_COMPLAINTS = _Complaints(logging.WARNING)
