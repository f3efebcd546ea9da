"""A small HTTP/1.1 server for a replica: whole requests in, one write out. Parsing is httptools' (llhttp).

Serve's own way to a replica costs a small model more than its answer does: a dozen objects, two tasks and four wake-ups
of the event loop for each request. Here a request is handled where its last byte is read.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

from tidegate.serving.exchange import (
    LOGGER,
    Cancel,
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
from tidegate.serving.limits import Limits

HEADER_BYTES = 64 * 1024
"""The most that a request's line and headers may have."""
ARRIVE_S = 30.0
"""A request must have arrived within this, and an answer must have left."""
IDLE_S = 120.0
BUFFERED_BYTES = 512 * 1024 * 1024
"""The most that all requests under way may hold."""
_SWEEP_S = 1.0
# An answer that is sent before the request has arrived whole would be lost if the connection were closed at once: TCP
# resets it when unread bytes are left.
_LINGER_S = 2.0


class HttpServer:
    """Serves `handler` on one address, within what `limits` says at the time. All of it happens on the running loop.

    `on_change` is told +1 when a request has arrived and -1 when its answer is written or its client has gone.
    """

    def __init__(
        self, handler: Handler, limits: Callable[[], Limits], on_change: Callable[[int], None] = lambda _: None
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.on_change = on_change
        self.connections: set[_Connection] = set()
        self.buffered = 0
        self.date = b""
        self._exit = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens, and returns the port. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, port, backlog=2048)
        self._sweep(loop)
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def should_exit(self) -> bool:
        """Set to close the listener and, as their answers are out, all connections."""
        return self._exit.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value and not self._exit.is_set():
            self._exit.set()
            self._stop_listening()
            for connection in list(self.connections):
                connection.close_when_idle()

    async def run(self) -> None:
        """Returns when `should_exit` was set and the last connection has gone."""
        try:
            await self._exit.wait()
            while self.connections:
                await asyncio.sleep(0.05)
        finally:
            self._stop_listening()
            for connection in list(self.connections):
                connection.abort()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once a second, for all connections: a timer for each request would cost as much as parsing it."""
        self.date = formatdate(usegmt=True).encode()
        now = loop.time()
        for connection in list(self.connections):
            try:
                connection.check(now)
            except Exception:  # noqa: BLE001 - one connection's fault must not end the deadlines of all others
                LOGGER.exception("A connection's deadline could not be kept; it is cut off.")
                connection.abort()
        if self.connections or not self._exit.is_set():
            loop.call_later(_SWEEP_S, self._sweep, loop)


class _Connection(asyncio.Protocol):
    """One client. Requests that come before the answer to the one before (pipelined) wait their turn."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._queue: deque[tuple[Request, bool]] = deque()
        self._cancel: Cancel | None = None
        self._current: Request | None = None
        self._keep_alive = True
        self._lingers = False
        self._is_closing = False
        self._has_ended = False
        self.deadline = self._loop.time() + IDLE_S
        self.leave_by = math.inf
        """When what is written has to have left; finite while the client does not read it."""
        self._fresh()

    def _fresh(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._unseen_bytes = 0
        self._arriving = False
        self._is_past_head = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._server.connections.add(self)
        if self._server.should_exit:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._is_closing = True
        self._release(self._body_bytes)
        for request, _ in self._queue:
            self._release(len(request.body))
        self._queue.clear()
        if self._current is not None:
            if self._cancel is not None:
                self._cancel()
            self._done_with_current()

    def eof_received(self) -> bool:
        # A client may stop sending and still wait for the answer. Its end is not read before the queue is empty.
        self._has_ended = True
        return self._is_busy

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            return
        headers, known = self._headers, self._header_bytes + self._body_bytes
        try:
            self._parser.feed_data(data)
            if self._headers is headers and self._header_bytes + self._body_bytes == known:
                # The parser keeps a header to itself until its end, and that may never come.
                self._unseen_bytes += len(data)
                self._check_head(self._unseen_bytes)
            else:
                self._unseen_bytes = 0
        except HttpError as error:
            self._refuse(error)
        except httptools.HttpParserCallbackError as error:
            self._refuse(error.__context__ if isinstance(error.__context__, HttpError) else error)
        except httptools.HttpParserError as error:
            self._refuse(HttpError(HTTPStatus.BAD_REQUEST, f"the request is no HTTP/1.1: {error}"))

    def pause_writing(self) -> None:
        self.leave_by = self._loop.time() + ARRIVE_S
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.leave_by = math.inf
        if self._queue:
            self._start_next()
        else:
            self._transport.resume_reading()

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._fresh()
        self._arriving = True
        if not self._is_busy:
            self.deadline = self._loop.time() + ARRIVE_S

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes | None) -> None:
        # What a trailer says was not there when the request was let in, by whoever stands before this server.
        if not self._is_past_head:
            self._headers[name.lower()] = value or b""
        self._count(len(name) + len(value or b"") + 4)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        self._check_head(self._header_bytes)

    def _check_head(self, size: int) -> None:
        if size > HEADER_BYTES:
            raise HttpError(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers have more than {HEADER_BYTES} bytes"
            )

    def on_headers_complete(self) -> None:
        self._is_past_head = True
        if self._parser.should_upgrade():
            raise HttpError(HTTPStatus.BAD_REQUEST, "this server changes to no other protocol")
        stated = self._headers.get(b"content-length", b"0")
        length = int(stated) if stated.isdigit() else 0
        self._check_size(length)
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, chunk: bytes) -> None:
        self._body_bytes += len(chunk)
        self._server.buffered += len(chunk)
        self._check_size(self._body_bytes)
        self._chunks.append(chunk)

    def _check_size(self, size: int) -> None:
        if size > self._server.limits().body_bytes:
            raise too_large(self._server.limits().body_bytes)
        if self._server.buffered + size - self._body_bytes > BUFFERED_BYTES:
            message = "the requests under way hold all the memory there is for them; try again later"
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, message, [(b"retry-after", b"1")])

    def on_message_complete(self) -> None:
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        request = Request(self._parser.get_method().decode("latin-1"), _path(self._url), self._headers, body)
        keep_alive = self._parser.should_keep_alive()
        self._fresh()
        if self._is_closing:
            self._release(len(body))
        elif not self._is_busy and self.leave_by == math.inf:
            self._start(request, keep_alive)
        else:
            self._queue.append((request, keep_alive))
            self._transport.pause_reading()

    # One request after the other.

    @property
    def _is_busy(self) -> bool:
        """Whether a request has arrived that is not answered."""
        return self._current is not None or bool(self._queue)

    def _start(self, request: Request, keep_alive: bool) -> None:
        self._current, self._keep_alive = request, keep_alive
        self.deadline = self._loop.time() + self._server.limits().timeout_s
        self._server.on_change(1)
        cancel = answered(self._server.handler, request, self._reply)
        if self._current is request:
            self._cancel = cancel

    def _reply(self, response: Response) -> None:
        request = self._current
        if request is None:
            return
        keep_alive = self._keep_alive and not self._server.should_exit and not self._has_ended
        self._write(request, response, keep_alive)
        self._done_with_current()
        if not keep_alive:
            self._close()
            return
        self.deadline = self._loop.time() + (ARRIVE_S if self._arriving else IDLE_S)
        if self._queue:
            # On the loop, not here: a long pipeline would be a deep stack.
            self._loop.call_soon(self._start_next)

    def _start_next(self) -> None:
        # Not while the client leaves the answer before unread: it would have any number of them kept here.
        is_free = self._current is None and not self._is_closing and self.leave_by == math.inf
        if self._queue and is_free:
            request, keep_alive = self._queue.popleft()
            if not self._queue:
                self._transport.resume_reading()
            self._start(request, keep_alive)

    def _done_with_current(self) -> None:
        assert self._current is not None
        self._release(len(self._current.body))
        self._current = self._cancel = None
        self._server.on_change(-1)

    def _release(self, size: int) -> None:
        self._server.buffered -= size

    def _write(self, request: Request | None, response: Response, keep_alive: bool) -> None:
        head = [
            _status_line(response.status),
            b"date: ",
            self._server.date,
            b"\r\ncontent-type: ",
            response.content_type,
            b"\r\ncontent-length: %d\r\n" % len(response.body),
        ]
        if request is not None and (sent_id := request.headers.get(b"x-request-id")):
            head.append(b"x-request-id: %b\r\n" % sent_id)
        for name, value in response.headers:
            head.append(b"%b: %b\r\n" % (name, value))
        head.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
        if request is None or request.method != "HEAD":
            head.append(response.body)
        self._transport.write(b"".join(head))

    # Ends.

    def _refuse(self, error: Exception) -> None:
        """Answers a request that has not arrived whole, and takes no further ones."""
        if self._is_closing or self._lingers:
            return
        if self._is_busy:
            # An answer now would be taken for that of the request under way.
            self.abort()
            return
        self._write(None, failure(error, Request("?", _path(self._url), {}, b"")), keep_alive=False)
        self._lingers = True
        self.deadline = self._loop.time() + _LINGER_S
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def check(self, now: float) -> None:
        """Ends what takes too long."""
        if now > self.leave_by:
            self.abort()
        elif now > self.deadline:
            self._overdue()

    def _overdue(self) -> None:
        if self._current is not None and not self._is_closing:
            if self._cancel is not None:
                self._cancel()
            self._keep_alive = False
            self._reply(failure(late(self._server.limits().timeout_s), self._current))
        elif self._arriving and not self._lingers and not self._is_closing:
            self._refuse(too_slow(ARRIVE_S))
        else:
            self.abort()

    def close_when_idle(self) -> None:
        if not self._is_busy and not self._arriving:
            self._close()

    def _close(self) -> None:
        self._is_closing = True
        self.deadline = self._loop.time() + ARRIVE_S
        self._transport.close()

    def abort(self) -> None:
        LOGGER.debug("A connection was cut off.")
        self._transport.abort()


def _path(url: bytes) -> str:
    """The decoded path of a request's target. What cannot be decoded stays as it is: no route is like that."""
    path = url.partition(b"?")[0]
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("utf-8", "replace")


_STATUS_LINES: dict[int, bytes] = {
    int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}


def _status_line(status: int) -> bytes:
    return _STATUS_LINES[int(status)]
