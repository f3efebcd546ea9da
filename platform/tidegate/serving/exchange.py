"""One HTTP exchange, whichever server it came through: a request that has arrived whole, and what is answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from tidegate.errors import TidegateError, UnavailableError
from tidegate.protocol import error_body

Headers = Iterable[tuple[bytes, bytes]]

# A child of Serve's logger: its records land in the replica's own log file.
LOGGER = logging.getLogger("ray.serve.tidegate")

JSON = b"application/json"


class Request(NamedTuple):
    """`headers` by lower-case name; `path` is decoded and without the query."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: bytes


class Response(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = JSON


Reply = Callable[[Response], None]
Cancel = Callable[[], object]
Handler = Callable[[Request, Reply], Cancel | None]
"""Answers by one call of `reply`, now or later on the same loop, or raises. What it returns is called when the client
has gone before that."""


class HttpError(Exception):
    """An answer that is no success: status, sentence, extra headers."""

    def __init__(self, status: HTTPStatus, message: str, headers: Headers = ()) -> None:
        # All of it, so that it can be sent from one process to another.
        super().__init__(status, message, tuple(headers))
        self.status = status
        self.message = message
        self.headers = tuple(headers)


def not_found(path: str) -> HttpError:
    return HttpError(HTTPStatus.NOT_FOUND, f"no such path: {path}")


def no_endpoint(name: str) -> HttpError:
    return HttpError(HTTPStatus.NOT_FOUND, f"no endpoint {name!r}; GET /v2/models lists them")


def too_large(limit: int) -> HttpError:
    return HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than the {limit} bytes that are taken")


def too_slow(seconds: float) -> HttpError:
    return HttpError(HTTPStatus.REQUEST_TIMEOUT, f"the request did not arrive whole within {seconds:g} s")


def late(seconds: float) -> HttpError:
    return HttpError(HTTPStatus.GATEWAY_TIMEOUT, f"no answer within the endpoint's limit of {seconds:g} s")


def require_method(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise HttpError(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"{request.path} takes {' or '.join(methods)}, not {request.method}",
            [(b"allow", ", ".join(methods).encode())],
        )


def below(path: str, prefix: str) -> str | None:
    """What of `path` comes after `prefix`: "" or "/...". None when it only begins like it, or doesn't."""
    if not path.startswith(prefix):
        return None
    rest = path[len(prefix) :]
    return rest if rest == "" or rest.startswith("/") else None


def explained(error: Exception, what: str) -> HttpError:
    """What a client is told of an error. What nobody foresaw is in the replica's log, not in the answer."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, TidegateError):
        retry = [(b"retry-after", b"1")] if isinstance(error, UnavailableError) else []
        return HttpError(HTTPStatus(error.http_status), str(error), retry)
    LOGGER.error("Request to %s failed.", what, exc_info=error)
    return HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see the replica's log")


def failure(error: Exception, request: Request) -> Response:
    """The response that says what went wrong."""
    told = explained(error, request.path)
    return Response(told.status, error_body(told.message), told.headers)


def answered(handler: Handler, request: Request, reply: Reply) -> Cancel | None:
    """Has `handler` answer `request`; what it raises is the answer."""
    try:
        return handler(request, reply)
    except Exception as error:  # noqa: BLE001 - told to the client, and in the log where nobody foresaw it
        reply(failure(error, request))
        return None


_under_way: set[asyncio.Task[None]] = set()


def later(answer: Coroutine[Any, Any, Response], request: Request, reply: Reply) -> Cancel:
    """Replies what `answer` comes to, an error included."""

    async def answered_later() -> None:
        try:
            response = await answer
        except Exception as error:  # noqa: BLE001 - told to the client, and in the log where nobody foresaw it
            response = failure(error, request)
        reply(response)

    task = asyncio.get_running_loop().create_task(answered_later())
    # The loop itself holds tasks weakly.
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    return task.cancel
