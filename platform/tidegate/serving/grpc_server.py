"""A gRPC server for a replica: the protocol's service, and the health check that HAProxy asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tidegate.errors import RequestError
from tidegate.serving.exchange import Headers, HttpError, explained, too_large
from tidegate.serving.grpc_messages import METHODS, SERVICE, message
from tidegate.serving.limits import Limits

Health = Callable[[], Awaitable[tuple[bool, str]]]
Call = Callable[[str, Any, Mapping[bytes, bytes]], Awaitable[Any]]
"""Answers one call: the method's name, its request, the headers by lower-case name. Raises."""

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_HEALTH_SERVICE = "ray.serve.RayServeAPIService"
CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.CONFLICT: grpc.StatusCode.ABORTED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
}


class GrpcServer:
    """Serves `call` on one address. `on_change` is told +1 when a request has come and -1 when it is answered."""

    def __init__(
        self,
        call: Call,
        health: Health,
        limits: Callable[[], Limits],
        on_change: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._call, self._health, self._limits, self._on_change = call, health, limits, on_change
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.aio.server(options=options)
        methods = {name: self._handler(name) for name in METHODS}
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, methods),
                grpc.method_handlers_generic_handler(
                    _HEALTH_SERVICE, {"Healthz": grpc.unary_unary_rpc_method_handler(self._healthz)}
                ),
            )
        )

    async def start(self, host: str, port: int) -> int:
        """Listens, and returns the port. Raises OSError."""
        try:
            bound = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port}") from error
        await self._server.start()
        return int(bound)

    async def run(self) -> None:
        await self._server.wait_for_termination()

    async def stop(self, grace: float | None) -> None:
        """Takes no further calls, and ends when those under way are answered or after `grace` seconds."""
        await self._server.stop(grace)

    def _handler(self, method: str) -> Any:
        # Without a deserializer of grpc's: what does not parse is the client's fault, and told as that.
        async def handle(data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            self._on_change(1)
            try:
                return await self._answer(method, data, context)
            finally:
                self._on_change(-1)

        return grpc.unary_unary_rpc_method_handler(handle)

    async def _answer(self, method: str, data: bytes, context: Any) -> bytes:
        told = await answered(self._call, method, data, _headers(context), self._limits())
        if isinstance(told, bytes):
            return told
        await context.abort(CODES.get(told.status, grpc.StatusCode.INTERNAL), told.message, _trailers(told.headers))
        raise AssertionError("abort raises")

    async def _healthz(self, _: bytes, context: Any) -> bytes:
        healthy, word = await self._health()
        if not healthy:
            await context.abort(grpc.StatusCode.UNAVAILABLE, word)
        # HealthzResponse: field 1 is the word.
        return b"\x0a" + bytes([len(word)]) + word.encode()


async def answered(
    call: Call, method: str, data: bytes, headers: Mapping[bytes, bytes], limits: Limits
) -> bytes | HttpError:
    """The message that `call` answers a message with, or what the client is told went wrong."""
    try:
        if len(data) > limits.body_bytes:
            raise too_large(limits.body_bytes)
        request = message(f"{method}Request").FromString(data)
        answer = await asyncio.wait_for(call(method, request, headers), limits.timeout_s)
    except DecodeError:
        return explained(RequestError(f"The message is no {method}Request"), method)
    except TimeoutError:
        return HttpError(HTTPStatus.GATEWAY_TIMEOUT, f"no answer within {limits.timeout_s:g} s")
    except Exception as error:  # noqa: BLE001 - told to the client, and in the log where nobody foresaw it
        return explained(error, method)
    answered_with: bytes = answer.SerializeToString()
    return answered_with


def _headers(context: Any) -> dict[bytes, bytes]:
    metadata = context.invocation_metadata() or ()
    return {name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in metadata}


def _trailers(headers: Headers) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode(), value.decode()) for name, value in headers)
