"""The little of ASGI that the serving side needs: read a bounded body, send JSON, turn every error into JSON."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

from tidegate.errors import TidegateError, UnavailableError
from tidegate.protocol import error_body

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]
Handler = Callable[[Scope, Receive], Awaitable[bytes]]
"""Answers one request with a JSON body, or raises."""

# A child of Serve's logger: its records land in the replica's own log file.
LOGGER = logging.getLogger("ray.serve.tidegate")


class HttpError(Exception):
    """An answer that is no success: status, sentence, extra headers."""

    def __init__(self, status: HTTPStatus, message: str, headers: Headers = ()) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers = tuple(headers)


class ClientGoneError(Exception):
    """The client left before its body was complete; there is nobody to answer."""


def not_found(path: str) -> HttpError:
    return HttpError(HTTPStatus.NOT_FOUND, f"no such path: {path}")


def no_endpoint(name: str) -> HttpError:
    return HttpError(HTTPStatus.NOT_FOUND, f"no endpoint {name!r}; GET /v2/models lists them")


def require_method(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        message = f"{scope['path']} takes {method}, not {scope['method']}"
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, message, [(b"allow", method.encode())])


def relative_path(scope: Scope) -> str | None:
    """The path below the application's prefix: "" or "/...". None when the path only begins like the prefix."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    relative = path[len(root) :] if path.startswith(root) else path
    return relative if relative == "" or relative.startswith("/") else None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The request's body. Raises `HttpError` 413 over `limit` bytes, `ClientGoneError` when it ends early."""
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
        raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has {size} bytes; at most {limit} are taken")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def send_json(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    length = str(len(body)).encode()
    all_headers = [(b"content-type", b"application/json"), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": int(status), "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


class App:
    """An ASGI application around one handler: its body with 200, or what it raised as `{"error": ...}`.

    An object, not a function: uvicorn takes any other bound coroutine for an ASGI 2 application.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._handler(scope, receive)
        except ClientGoneError:
            return
        except HttpError as error:
            await send_json(send, error.status, error_body(error.message), error.headers)
        except TidegateError as error:
            retry = [(b"retry-after", b"1")] if isinstance(error, UnavailableError) else []
            await send_json(send, error.http_status, error_body(str(error)), retry)
        except Exception:
            LOGGER.exception("Request to %s failed.", scope["path"])
            await send_json(send, HTTPStatus.INTERNAL_SERVER_ERROR, error_body("internal error; see the replica's log"))
        else:
            await send_json(send, HTTPStatus.OK, body)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
