"""A handler as an ASGI application: the way in through Serve's own proxy, where no HAProxy runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tidegate.serving.exchange import (
    Handler,
    HttpError,
    Request,
    Response,
    answered,
    failure,
    late,
    too_large,
    too_slow,
)
from tidegate.serving.http_server import ARRIVE_S
from tidegate.serving.limits import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGoneError(Exception):
    """The client left before its body was complete; there is nobody to answer."""


class App:
    """An ASGI application around one handler.

    An object, not a function: uvicorn takes any other bound coroutine for an ASGI 2 application.
    """

    def __init__(self, handler: Handler, limits: Callable[[], Limits]) -> None:
        self._handler = handler
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        request = Request(scope["method"], scope["path"], headers, b"")
        try:
            body = await asyncio.wait_for(_read_body(receive, self._limits().body_bytes), ARRIVE_S)
        except ClientGoneError:
            return
        except TimeoutError:
            response = failure(too_slow(ARRIVE_S), request)
        except HttpError as error:
            response = failure(error, request)
        else:
            response = await self.response(request._replace(body=body))
        await _send(send, request, response)

    async def response(self, request: Request) -> Response:
        """The handler's answer, in time or 504."""
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def reply(response: Response) -> None:
            if not answer.done():
                answer.set_result(response)

        cancel = answered(self._handler, request, reply)
        try:
            return await asyncio.wait_for(answer, self._limits().timeout_s)
        except BaseException as error:
            if cancel is not None:
                cancel()
            if isinstance(error, TimeoutError):
                return failure(late(self._limits().timeout_s), request)
            raise


async def _read_body(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        if not message.get("more_body", False):
            break
    # The rest of a body that is too large is read and dropped: a client still sending would miss the answer.
    if size > limit:
        raise too_large(limit)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _send(send: Send, request: Request, response: Response) -> None:
    headers = [
        (b"content-type", response.content_type),
        (b"content-length", str(len(response.body)).encode()),
        *response.headers,
    ]
    if sent_id := request.headers.get(b"x-request-id"):
        headers.append((b"x-request-id", sent_id))
    await send({"type": "http.response.start", "status": int(response.status), "headers": headers})
    await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else response.body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
