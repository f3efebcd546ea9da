"""A replica's servers on the ports that HAProxy sends its requests to, in the place of Serve's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from tidegate import ray_internals
from tidegate.errors import MissingError
from tidegate.ray_internals import ServeReplica
from tidegate.serving.exchange import LOGGER, Cancel, Handler, Reply, Request, Response, later
from tidegate.serving.grpc_server import Call, GrpcServer
from tidegate.serving.http_server import HttpServer
from tidegate.serving.limits import Limits

_HEALTH = "/-/healthz"


def take_ports(handler: Handler, call: Call, limits: Callable[[], Limits], *, is_loopback: bool) -> None:
    """Called while a replica is made: Serve opens the ports right after, and keeps its own servers where this fails."""

    async def listen_http(replica: ServeReplica, host: str, port: int) -> tuple[asyncio.Task[None], HttpServer]:
        server = HttpServer(_with_health(handler, replica), limits, replica.ongoing)
        await server.start(host, port)
        return asyncio.create_task(server.run()), server

    async def listen_grpc(replica: ServeReplica, host: str, port: int) -> tuple[asyncio.Task[None], GrpcServer]:
        server = GrpcServer(call, replica.health, limits, replica.ongoing)
        await server.start(host, port)
        return asyncio.create_task(server.run()), server

    try:
        if is_loopback:
            ray_internals.keep_internal_port_on("127.0.0.1")
        ray_internals.replace_http_server(listen_http)
        ray_internals.replace_grpc_server(listen_grpc)
    except MissingError as error:
        LOGGER.warning("%s", error)


def _with_health(handler: Handler, replica: ServeReplica) -> Handler:
    """`handler`, and an answer to HAProxy, which asks every few seconds whether to send requests here."""

    async def health() -> Response:
        healthy, message = await replica.health()
        status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(status, message.encode(), content_type=b"text/plain")

    def handle(request: Request, reply: Reply) -> Cancel | None:
        if request.path != _HEALTH:
            return handler(request, reply)
        return later(health(), request, reply)

    return handle
