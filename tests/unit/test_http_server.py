"""The HTTP server on real sockets, around a handler that answers at once or when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tidegate.errors import ConflictError, UnavailableError
from tidegate.serving import http_server
from tidegate.serving.exchange import Cancel, Handler, Reply, Request, Response, answered, later
from tidegate.serving.http_server import HttpServer
from tidegate.serving.limits import Limits

WAIT_S = 20.0
LIMIT = 100_000
# More than the buffers of both ends of a connection hold.
LARGE = 16 * 2**20
GOOD = b"POST /good HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello"
NOW = b"GET /now HTTP/1.1\r\nhost: h\r\n\r\n"
CLOSE = b"GET /last HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"
CHUNKED = b"POST /parts HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"

MakeLoop = Callable[[], asyncio.AbstractEventLoop]
LOOPS: list[Any] = [pytest.param(asyncio.new_event_loop, id="asyncio")]
with contextlib.suppress(ImportError):
    # Serve's replicas run on it.
    import uvloop

    LOOPS.append(pytest.param(uvloop.new_event_loop, id="uvloop"))


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection. It reads only when told to."""

    def __init__(self, *, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.loop = asyncio.get_running_loop()
        self.unread = b""

    async def connect(self, port: int) -> None:
        await self.loop.sock_connect(self.socket, ("127.0.0.1", port))

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            await self.loop.sock_sendall(self.socket, part)

    async def send_apart(self, parts: Iterable[bytes]) -> None:
        """Such that the server reads each by itself: it runs on the same loop."""
        for part in parts:
            await self.send(part)
            for _ in range(3):
                await asyncio.sleep(0)

    async def until(self, mark: bytes) -> bytes:
        while mark not in self.unread:
            data = await self.loop.sock_recv(self.socket, 2**20)
            assert data, f"the connection ended after {self.unread!r}"
            self.unread += data
        found, _, self.unread = self.unread.partition(mark)
        return found + mark

    async def answer(self, *, has_body: bool = True) -> Answer:
        answer, size = parse_head(await self.until(b"\r\n\r\n"))
        if not has_body:
            return answer
        parts, missing = [self.unread[:size]], size - len(self.unread)
        self.unread = self.unread[size:]
        while missing > 0:
            parts.append(await self.loop.sock_recv(self.socket, min(missing, 2**20)))
            assert parts[-1], f"the connection ended {missing} bytes before the answer"
            missing -= len(parts[-1])
        return answer._replace(body=b"".join(parts))

    async def rest(self) -> bytes:
        """All that comes until the connection ends, in whatever way."""
        data = self.unread
        with contextlib.suppress(ConnectionError):
            while part := await self.loop.sock_recv(self.socket, 2**20):
                data += part
        self.unread = b""
        return data

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()

    def stop_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def vanish(self) -> None:
        """Resets the connection, as the system does for a process that was killed with answers unread."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Stand:
    """A server, its handler, what that was asked, and clients."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.asked: list[Request] = []
        self.held: dict[str, Reply] = {}
        self.cancelled: list[str] = []
        self.changes: list[int] = []
        self.clients: list[Client] = []
        self.server = HttpServer(self.handle, lambda: self.limits, self.changes.append)

    def handle(self, request: Request, reply: Reply) -> Cancel | None:
        self.asked.append(request)
        if request.path == "/boom":
            raise ZeroDivisionError("a secret")
        if request.path == "/busy":
            raise UnavailableError("all hands are full")
        if request.path == "/large":
            reply(Response(200, b"x" * LARGE))
        elif request.path.startswith("/later"):
            self.held[request.path] = reply
            return lambda: self.cancelled.append(request.path)
        else:
            reply(echo(request))
        return None

    async def client(self, *, receive_bytes: int | None = None) -> Client:
        client = Client(receive_bytes=receive_bytes)
        self.clients.append(client)
        await client.connect(self.port)
        return client

    async def start(self) -> None:
        self.port = await self.server.start("127.0.0.1", 0)
        self.serving = asyncio.create_task(self.server.run())

    async def stop(self) -> None:
        for client in self.clients:
            client.socket.close()
        self.serving.cancel()
        await asyncio.wait([self.serving])
        await until(lambda: not self.server.connections)

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.asked]

    @property
    def is_even(self) -> bool:
        """Whether all that was taken has been given back."""
        return self.server.buffered == 0 and sum(self.changes) == 0


Test = Callable[[Stand], Awaitable[None]]
Run = Callable[..., None]


def echo(request: Request) -> Response:
    said = {"method": request.method, "path": request.path, "body": request.body.decode("latin-1")}
    return Response(200, json.dumps(said).encode(), ((b"x-made-by", b"echo"),))


def run_on(make_loop: MakeLoop, test: Test, **limits: Any) -> None:
    faults: list[dict[str, Any]] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        stand = Stand(Limits(**{"body_bytes": LIMIT, **limits}))
        await stand.start()
        try:
            await asyncio.wait_for(test(stand), WAIT_S)
        finally:
            await stand.stop()
        assert stand.is_even
        assert set(stand.changes) <= {1, -1}

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(bounded())
    assert faults == [], "errors that the loop caught"


@pytest.fixture(name="run", params=LOOPS)
def _run(request: pytest.FixtureRequest) -> Run:
    return partial(run_on, request.param)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is slow is so after a moment; who only waits may wait for long."""
    monkeypatch.setattr(http_server, "ARRIVE_S", 0.1)
    monkeypatch.setattr(http_server, "_SWEEP_S", 0.01)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def parse_head(head: bytes) -> tuple[Answer, int]:
    first, *lines = head.removesuffix(b"\r\n\r\n").decode("latin-1").split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    assert len({name for name, _ in headers}) == len(headers), "a header is there twice"
    named = dict(headers)
    return Answer(int(status), named, b""), int(named["content-length"])


def answers(data: bytes) -> list[Answer]:
    """Whole ones, and nothing besides."""
    found = []
    while data:
        head, mark, data = data.partition(b"\r\n\r\n")
        answer, size = parse_head(head + mark)
        assert len(data) >= size
        found.append(answer._replace(body=data[:size]))
        data = data[size:]
    return found


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


async def send_for_ever(client: Client, part: bytes) -> None:
    while True:
        await client.send(part)


async def refused(client: Client, status: int, then: bytes = b"") -> str:
    """What the last answer on this connection says; the client sends something more and leaves."""
    answer = await client.answer()
    with contextlib.suppress(ConnectionError):
        await client.send(then)
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/json"
    assert await client.rest() == b""
    client.socket.close()
    return str(answer.said["error"])


# Good requests.


def test_a_connection_serves_one_request_after_the_other(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        for number in range(3):
            answer = await client.ask(GOOD.replace(b"/good", b"/a%%20b/%d?q=1" % number))
            assert answer.status == 200
            assert answer.said == {"method": "POST", "path": f"/a b/{number}", "body": "hello"}
            assert set(answer.headers) == {"date", "content-type", "content-length", "x-made-by"}
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["date"].endswith("GMT")
        assert stand.asked[0].headers == {b"host": b"h", b"content-length": b"5"}
        assert len(stand.server.connections) == 1
        assert stand.is_even

    run(test)


def test_pipelined_requests_are_answered_one_by_one_in_their_order(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        first, third = (NOW.replace(b"/now", path) for path in (b"/later/1", b"/later/3"))
        await client.send(first + GOOD + third + NOW)
        await until(lambda: "/later/1" in stand.held)
        assert stand.paths == ["/later/1"]
        assert stand.server.buffered == len(b"hello")
        stand.held["/later/1"](Response(200, b"1"))
        assert (await client.answer()).body == b"1"
        assert (await client.answer()).said["path"] == "/good"
        await until(lambda: "/later/3" in stand.held)
        assert stand.paths == ["/later/1", "/good", "/later/3"]
        stand.held["/later/3"](Response(200, b"3"))
        assert (await client.answer()).body == b"3"
        assert (await client.answer()).said["path"] == "/now"
        assert (await client.ask(GOOD)).said["path"] == "/good"
        assert stand.changes == [1, -1] * 5

    run(test)


def test_a_long_pipeline_is_no_deep_stack(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        await client.send(NOW.replace(b"/now", b"/later"), NOW * 2000)
        await until(lambda: "/later" in stand.held)
        stand.held["/later"](Response(200, b"1"))
        assert [(await client.answer()).status for _ in range(2001)] == [200] * 2001

    run(test)


def test_head_is_answered_like_get_but_for_the_body() -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        await client.send(NOW.replace(b"GET", b"HEAD") + NOW)
        head, get = await client.answer(has_body=False), await client.answer()
        # "HEAD" is one letter longer than "GET", and the handler echoes it.
        assert int(head.headers["content-length"]) == len(get.body) + 1
        assert get.said["method"] == "GET"

    run_on(asyncio.new_event_loop, test)


def test_a_client_that_expects_100_continue_gets_it_before_the_answer(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        head, body = GOOD.replace(b"\r\n\r\n", b"\r\nExpect: 100-Continue\r\n\r\n|").split(b"|")
        for _ in range(2):
            await client.send(head)
            assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert (await client.ask(body)).said["body"] == "hello"
        # A body that would be refused need not be sent at all.
        await client.send(head.replace(b"length: 5", b"length: %d" % (LIMIT + 1)))
        await refused(client, 413)

    run(test)


def test_chunks_are_put_together_and_trailers_change_no_header(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        head = CHUNKED.replace(b"host: h", b"authorization: mine")
        end = b"0\r\nauthorization: another's\r\nx-request-id: late\r\n\r\n"
        await client.send(head + chunks(b"hel", b"l" * 20) + b"1;name=value\r\no\r\n" + end + NOW)
        answer = await client.answer()
        assert answer.said["body"] == "hel" + "l" * 20 + "o"
        assert "x-request-id" not in answer.headers
        assert stand.asked[0].headers[b"authorization"] == b"mine"
        assert (await client.answer()).said["path"] == "/now"
        assert stand.asked[1].headers == {b"host": b"h"}

    run(test)


def test_what_a_handler_raises_is_told_and_the_connection_goes_on(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        answer = await client.ask(NOW.replace(b"/now", b"/boom"))
        assert (answer.status, answer.said) == (500, {"error": "internal error; see the replica's log"})
        answer = await client.ask(NOW.replace(b"/now", b"/busy"))
        assert (answer.status, answer.said) == (503, {"error": "all hands are full"})
        assert answer.headers["retry-after"] == "1"
        assert (await client.ask(NOW)).status == 200

    run(test)
    assert "a secret" in caplog.text


def test_what_a_coroutine_comes_to_is_the_answer() -> None:
    gate = asyncio.Event()
    cancelled: list[str] = []

    async def answer(request: Request) -> Response:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            cancelled.append(request.path)
            raise
        if request.path == "/taken":
            raise ConflictError("it is there already")
        return echo(request)

    async def test(stand: Stand) -> None:
        stand.server.handler = lambda request, reply: later(answer(request), request, reply)
        client, gone = await stand.client(), await stand.client()
        await gone.send(NOW)
        await until(lambda: sum(stand.changes) == 1)
        gone.vanish()
        await until(lambda: cancelled == ["/now"])
        await client.send(NOW.replace(b"/now", b"/taken") + NOW)
        gate.set()
        assert (await client.answer()).said == {"error": "it is there already"}
        assert (await client.answer()).said["path"] == "/now"

    run_on(asyncio.new_event_loop, test)


@pytest.mark.parametrize("more", [[], [GOOD], [GOOD, NOW]], ids=len)
def test_a_client_that_stops_sending_still_gets_its_answers_and_then_the_end(run: Run, more: list[bytes]) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        await client.send(b"".join([NOW.replace(b"/now", b"/later"), *more]))
        client.stop_sending()
        await until(lambda: "/later" in stand.held)
        stand.held["/later"](Response(200, b"1"))
        first, *others = answers(await client.rest())
        assert first.body == b"1"
        assert [answer.said["path"] for answer in others] == ["/good", "/now"][: len(more)]
        await until(lambda: not stand.server.connections)

    run(test)


@pytest.mark.parametrize("line", [b"connection: close", b"Connection: Close", b"HTTP/1.0"])
def test_the_connection_ends_where_the_client_says_so(line: bytes) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        last = NOW.replace(b"HTTP/1.1", line) if line == b"HTTP/1.0" else NOW.replace(b"host: h", line)
        await client.send(NOW + last + NOW)
        first, second = answers(await client.rest())
        assert "connection" not in first.headers
        assert second.headers["connection"] == "close"
        assert stand.paths == ["/now", "/now"]

    run_on(asyncio.new_event_loop, test)


# Request ids.


def with_id(value: bytes) -> bytes:
    return NOW.replace(b"host: h", b"x-request-id: " + value)


def test_a_request_id_comes_back_and_only_to_its_request(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        assert (await client.ask(with_id(b"a-1"))).headers["x-request-id"] == "a-1"
        assert "x-request-id" not in (await client.ask(NOW)).headers
        boom = await client.ask(with_id(b"b-2").replace(b"/now", b"/boom"))
        assert (boom.status, boom.headers["x-request-id"]) == (500, "b-2")

    run(test)


@given(value=st.binary(max_size=12) | st.text("ab\r\n\t\0: \x7f", max_size=9).map(str.encode))
@example(value=b"a\r\n evil: 1")
@example(value=b"a\nevil: 1")
@example(value=b"a\revil: 1")
@example(value=b"a\0evil: 1")
@settings(max_examples=60)
def test_nothing_can_be_written_into_the_head_of_an_answer_with_a_request_id(value: bytes) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        await client.send(with_id(value))
        client.stop_sending()
        found = answers(await client.rest())
        for answer in found:
            assert set(answer.headers) <= {
                *("date", "content-type", "content-length", "connection"),
                *("x-made-by", "x-request-id"),
            }
            assert not set(answer.headers.get("x-request-id", "")) & set("\r\n\0")
            assert answer.status in (200, 400)

    run_on(asyncio.new_event_loop, test)


# Requests that are too much.


def test_a_body_that_is_stated_too_large_is_refused_while_its_client_still_sends(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        size = 8 * 2**20
        # The client reads only after all was sent: the answer must not be lost by then.
        await client.send(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % size, b"x" * size)
        assert str(LIMIT) in await refused(client, 413)
        await until(lambda: not stand.server.connections)
        assert stand.asked == []

    run(test)


def test_a_body_that_turns_out_too_large_is_refused(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        await client.send(CHUNKED, *[chunks(b"x" * 30_000)] * 100)
        assert str(LIMIT) in await refused(client, 413)
        await until(lambda: not stand.server.connections)
        assert stand.asked == []
        assert stand.is_even
        # What is just within is taken.
        client = await stand.client()
        assert (await client.ask(CHUNKED + chunks(b"x" * LIMIT) + chunks(b""))).status == 200
        assert (await client.ask(b"PUT / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % LIMIT + b"x" * LIMIT)).status == 200

    run(test)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("has_length", [True, False])
def test_a_client_that_never_stops_sending_is_cut_off(
    run: Run, has_length: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_LINGER_S", 0.05)

    async def test(stand: Stand) -> None:
        client = await stand.client()
        await client.send(b"POST / HTTP/1.1\r\ncontent-length: 999999999999\r\n\r\n" if has_length else CHUNKED)
        with pytest.raises(ConnectionError):
            await send_for_ever(client, chunks(b"x" * 50_000))
        await until(lambda: not stand.server.connections)
        assert stand.is_even
        assert stand.asked == []

    run(test)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"x-long: " + b"a" * 70_000, id="one header"),
        pytest.param(b"\r\n".join(b"x-%d: aaaaaaaa" % number for number in range(5000)), id="many headers"),
        pytest.param(b"x" * 70_000 + b": a", id="a name"),
    ],
)
def test_headers_that_are_too_large_are_refused(run: Run, head: bytes) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        await client.send(NOW.replace(b"host: h", head))
        assert "headers" in await refused(client, 431)
        client = await stand.client()
        await client.send(NOW.replace(b"/now", b"/" + b"a" * 70_000))
        await refused(client, 431)
        client = await stand.client()
        assert (await client.ask(NOW.replace(b"host: h", b"x-long: " + b"a" * 60_000))).status == 200
        assert len(stand.asked) == 1
        # Nor does it matter in how many parts it comes.
        await client.send_apart([NOW[:-4], *[b"a" * 1000] * 60, b"\r\n\r\n"])
        assert (await client.answer()).status == 200

    run(test)


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(NOW[:-4], id="a header's value"),
        pytest.param(NOW[:-9], id="a header's name"),
        pytest.param(CHUNKED + b"0\r\nx-trailer: ", id="a trailer"),
        pytest.param(CHUNKED + b"1;name=", id="the extension of a chunk"),
    ],
)
def test_what_never_ends_in_a_head_is_refused_before_it_fills_the_memory(run: Run, start: bytes) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        answer = asyncio.create_task(refused(client, 431))
        await client.send(start)
        sent = 0
        while not answer.done():
            # A megabyte is what sockets may hold beside what the server has read.
            assert sent < http_server.HEADER_BYTES + 2**20
            await client.send(b"a" * 4096)
            sent += 4096
            await asyncio.sleep(0)
        assert "headers" in await answer
        assert stand.asked == []

    run(test)


def test_what_a_parser_keeps_to_itself_is_bounded_each_time_anew(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        chunk = [b"1;name=" + b"a" * 10_000, b"\r\nb\r\n"]
        await client.send_apart([CHUNKED, *chunk * 10, b"0\r\n\r\n"])
        assert (await client.answer()).said["body"] == "b" * 10

    run(test)


def test_a_large_body_before_a_head_is_none_of_it(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        body = b"x" * LIMIT
        request = b"POST / HTTP/1.1\r\nx-long: %b\r\ncontent-length: %d\r\n\r\n" % (b"a" * 50_000, LIMIT) + body
        # Heads end up in every position of what is read at once.
        for step in (1000, 60_000, 170_000):
            stream = request * 4
            await client.send(*(stream[start : start + step] for start in range(0, len(stream), step)))
            assert [(await client.answer()).status for _ in range(4)] == [200] * 4

    run(test)


def test_all_bodies_together_are_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "BUFFERED_BYTES", 100)
    stated = b"POST %b HTTP/1.1\r\ncontent-length: 80\r\n\r\n" + b"x" * 80

    async def test(stand: Stand) -> None:
        first = await stand.client()
        await first.send(stated % b"/later")
        await until(lambda: "/later" in stand.held)
        for data in (stated % b"/", CHUNKED + chunks(b"x" * 80)):
            second = await stand.client()
            answer = await second.ask(data)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert await second.rest() == b""
            second.vanish()
        await until(lambda: stand.server.buffered == 80)
        stand.held["/later"](Response(200, b"1"))
        third = await stand.client()
        assert (await third.ask(stated % b"/")).status == 200
        assert stand.paths == ["/later", "/"]

    run(test)


# Clients that are slow, or gone.


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "start", [b"", CHUNKED, b"POST / HTTP/1.1\r\ncontent-length: 99999\r\n\r\n"], ids=["head", "chunks", "body"]
)
def test_who_sends_a_request_bit_by_bit_is_told_that_it_takes_too_long(run: Run, start: bytes) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        # The first request of a connection is not treated otherwise than the next.
        assert (await client.ask(NOW)).status == 200
        answer = asyncio.create_task(refused(client, 408))
        bits = {b"": b"GET /" + b"a" * 60_000, CHUNKED: chunks(b"a") * 90_000}.get(start, b"a" * 99_998)
        await client.send(start)
        for position in range(len(bits)):
            if answer.done():
                break
            await client.send(bits[position : position + 1])
            await asyncio.sleep(0.001)
        assert "did not arrive" in await answer
        assert stand.paths == ["/now"]
        await until(lambda: not stand.server.connections)
        assert stand.is_even

    run(test)


@pytest.mark.usefixtures("hurried")
def test_a_connection_may_be_silent_for_longer_than_a_request_may_take(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "IDLE_S", math.inf)

    async def test(stand: Stand) -> None:
        silent, asking, started = [await stand.client() for _ in range(3)]
        assert (await asking.ask(NOW)).status == 200
        # It came last, and is cut off before the others.
        await started.send(NOW[:10])
        await refused(started, 408, then=NOW[10:])
        await until(lambda: len(stand.server.connections) == 2)
        assert (await silent.ask(NOW)).status == 200
        monkeypatch.setattr(http_server, "IDLE_S", 0.05)
        fresh = await stand.client()
        assert (await asking.ask(NOW)).status == 200
        assert await fresh.rest() == b""
        assert await asking.rest() == b""
        assert (await silent.ask(NOW)).status == 200
        # What was refused is not taken up again when the rest of it comes.
        assert stand.paths == ["/now"] * 4

    run(test)


@pytest.mark.usefixtures("hurried")
def test_a_request_that_began_before_the_answer_to_another_has_its_time_too(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        await client.send(NOW.replace(b"/now", b"/later") + NOW[:10])
        await until(lambda: "/later" in stand.held)
        stand.held["/later"](Response(200, b"1"))
        assert (await client.answer()).body == b"1"
        await refused(client, 408)

    run(test)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("after", [b"", NOW[:10], NOW.replace(b"/now", b"/large") * 20], ids=["", "a part", "more"])
def test_who_does_not_read_is_cut_off_and_holds_one_answer_at_most(run: Run, after: bytes) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client(receive_bytes=4096)
        await client.send(NOW.replace(b"/now", b"/large") + after)
        await until(lambda: stand.asked != [])
        await until(lambda: not stand.server.connections)
        assert stand.paths == ["/large"]
        assert len(await client.rest()) < LARGE

    run(test)


@pytest.mark.usefixtures("hurried")
def test_who_does_not_read_an_answer_that_came_later_holds_no_other(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client(receive_bytes=4096)
        await client.send(NOW.replace(b"/now", b"/later") + NOW.replace(b"/now", b"/large") * 20)
        await until(lambda: "/later" in stand.held)
        stand.held["/later"](Response(200, b"x" * LARGE))
        await until(lambda: not stand.server.connections)
        assert stand.paths == ["/later"]

    run(test)


@pytest.mark.usefixtures("hurried")
def test_who_does_not_read_its_last_answer_is_cut_off_too(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client(receive_bytes=4096)
        # A part of the next request has arrived when the server decides that there is none.
        await client.send(NOW.replace(b"/now", b"/later") + NOW[:10])
        await until(lambda: "/later" in stand.held)
        stand.server.should_exit = True
        stand.held["/later"](Response(200, b"x" * LARGE))
        await stand.serving
        assert not stand.server.connections

    run(test)


def test_who_reads_late_gets_everything(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client(receive_bytes=4096)
        await client.send((NOW.replace(b"/now", b"/large") + GOOD) * 3)
        await until(lambda: stand.asked != [])
        for _ in range(3):
            assert (await client.answer()).body == b"x" * LARGE
            assert (await client.answer()).said["body"] == "hello"
        assert (await client.ask(NOW)).status == 200

    run(test)


def test_a_slow_reader_does_not_put_off_the_limit_of_its_next_request(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_SWEEP_S", 0.01)

    async def test(stand: Stand) -> None:
        client = await stand.client(receive_bytes=4096)
        await client.send(NOW.replace(b"/now", b"/large") + NOW.replace(b"/now", b"/later"))
        assert (await client.answer()).body == b"x" * LARGE
        assert "0.1 s" in await refused(client, 504)
        assert stand.cancelled == ["/later"]

    run(test, timeout_s=0.1)


def test_the_work_for_a_client_that_has_gone_is_cancelled(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        await client.send(GOOD.replace(b"/good", b"/later"))
        await until(lambda: "/later" in stand.held)
        assert (stand.changes, stand.server.buffered) == ([1], 5)
        client.vanish()
        await until(lambda: stand.cancelled == ["/later"])
        assert stand.is_even
        # An answer that comes too late harms nobody.
        stand.held["/later"](Response(200, b"1"))
        assert stand.changes == [1, -1]

    run(test)


def test_a_client_that_goes_within_its_request_leaves_nothing(run: Run) -> None:
    async def test(stand: Stand) -> None:
        for leave in (Client.vanish, Client.stop_sending):
            client = await stand.client()
            await client.send(GOOD[:-2])
            await until(lambda: stand.server.buffered == 3)
            leave(client)
            await until(lambda: not stand.server.connections)
            assert stand.is_even
        assert stand.asked == []

    run(test)


@pytest.mark.usefixtures("hurried")
def test_an_answer_that_takes_too_long_is_504_and_its_work_is_cancelled(run: Run) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        await client.send(with_id(b"i-1").replace(b"/now", b"/later"))
        answer = await client.answer()
        assert (answer.status, answer.headers["x-request-id"]) == (504, "i-1")
        assert "0.05 s" in answer.said["error"]
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""
        assert stand.cancelled == ["/later"]
        stand.held["/later"](Response(200, b"1"))
        assert stand.changes == [1, -1]
        await until(lambda: not stand.server.connections)

    run(test, timeout_s=0.05)


# The end.


def test_draining_ends_idle_connections_and_lets_the_others_finish(run: Run) -> None:
    async def test(stand: Stand) -> None:
        idle, busy, arriving = [await stand.client() for _ in range(3)]
        assert (await idle.ask(NOW)).status == 200
        await busy.send(NOW.replace(b"/now", b"/later") + NOW)
        await arriving.send(GOOD[:-2])
        await until(lambda: "/later" in stand.held and stand.server.buffered == 3)
        stand.server.should_exit = True
        assert stand.server.should_exit
        assert await idle.rest() == b""
        with pytest.raises(ConnectionError):
            await stand.client()
        await arriving.send(GOOD[-2:] + NOW)
        whole = answers(await arriving.rest())
        assert [(answer.said["path"], answer.headers["connection"]) for answer in whole] == [("/good", "close")]
        assert not stand.serving.done()
        stand.held["/later"](Response(200, b"1"))
        answer = await busy.answer()
        assert (answer.body, answer.headers["connection"]) == (b"1", "close")
        assert await busy.rest() == b""
        await stand.serving
        assert stand.is_even
        # Nothing is begun that cannot be answered.
        assert stand.paths == ["/now", "/later", "/good"]

    run(test)


def test_a_server_that_nobody_asks_drains_at_once(run: Run) -> None:
    async def test(stand: Stand) -> None:
        stand.server.should_exit = True
        await stand.serving
        with pytest.raises(ConnectionError):
            await stand.client()

    run(test)


def test_a_port_that_is_taken_is_an_error() -> None:
    async def test(stand: Stand) -> None:
        with pytest.raises(OSError, match="in use"):
            await HttpServer(stand.handle, Limits).start("127.0.0.1", stand.port)

    run_on(asyncio.new_event_loop, test)


# Requests that are none.


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST /first HTTP/1.1", *lines, b"", body])


SMUGGLED = b"GET /smuggled HTTP/1.1\r\n\r\n"
LENGTH, PARTS = b"content-length: %d" % len(SMUGGLED), b"transfer-encoding: chunked"
MALFORMED = {
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01",
    "another method": b"FETCH / HTTP/1.1\r\n\r\n",
    "method in lower case": b"get / HTTP/1.1\r\n\r\n",
    "another version": b"GET / HTTP/3.0\r\n\r\n",
    "half a version": b"GET / HTTP/1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a space in the path": b"GET /a b HTTP/1.1\r\n\r\n",
    "no line ends": b"GET / HTTP/1.1\nhost: h\n\n",
    "a folded header": post(b"x-a: 1", b" 2"),
    "a header without a name": post(b": 1"),
    "a header without a colon": post(b"x-a"),
    "a null in a header": post(b"x-a: \0"),
    "upgrade": post(b"connection: upgrade", b"upgrade: websocket"),
    "upgrade of a post": post(b"connection: upgrade", b"upgrade: h2c", b"content-length: 2", body=b"hi"),
    "connect": b"CONNECT h:80 HTTP/1.1\r\n\r\n" + SMUGGLED,
    "length and chunks": post(LENGTH, PARTS, body=b"0\r\n\r\n" + SMUGGLED),
    "chunks and length": post(PARTS, LENGTH, body=b"0\r\n\r\n" + SMUGGLED),
    "two lengths": post(b"content-length: 0", LENGTH, body=SMUGGLED),
    "the same length twice": post(LENGTH, LENGTH, body=SMUGGLED),
    "a list of lengths": post(b"content-length: 0, 26", body=SMUGGLED),
    "a negative length": post(b"content-length: -1", body=SMUGGLED),
    "a length with a sign": post(b"content-length: +26", body=SMUGGLED),
    "a length in hexadecimal": post(b"content-length: 0x1a", body=SMUGGLED),
    "a length beyond 64 bits": post(b"content-length: 18446744073709551617", body=SMUGGLED),
    "a space before the colon": post(b"content-length : 26", body=SMUGGLED),
    "another encoding": post(b"transfer-encoding: xchunked", body=SMUGGLED),
    "no encoding": post(b"transfer-encoding: identity", body=SMUGGLED),
    "chunks not last": post(b"transfer-encoding: chunked, identity", body=b"0\r\n\r\n" + SMUGGLED),
    "chunks, then another": post(PARTS, b"transfer-encoding: identity", body=b"0\r\n\r\n" + SMUGGLED),
    "an encoding after a tab": post(b"transfer-encoding:\x0bchunked", body=b"0\r\n\r\n" + SMUGGLED),
    "a chunk with a sign": post(PARTS, body=b"-1\r\n" + SMUGGLED),
    "a chunk in C": post(PARTS, body=b"0x1\r\na\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk beyond 64 bits": post(PARTS, body=b"10000000000000000\r\na\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk longer than it says": post(PARTS, body=b"1\r\nab\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk with a bare line end": post(PARTS, body=b"1\na\n0\n\n" + SMUGGLED),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_request_is_refused_once_and_nothing_after_it_is_read(run: Run, data: bytes) -> None:
    async def test(stand: Stand) -> None:
        alone, after = await stand.client(), await stand.client()
        await alone.send(data)
        assert await refused(alone, 400, then=NOW)
        # Nor is it taken for part of the request before.
        await after.send(GOOD + data + NOW)
        assert (await after.answer()).said["path"] == "/good"
        assert await refused(after, 400, then=NOW)
        await until(lambda: not stand.server.connections)
        assert stand.paths == ["/good"]

    run(test)


@pytest.mark.parametrize("data", [MALFORMED["two lengths"], MALFORMED["upgrade"]], ids=["two lengths", "upgrade"])
def test_what_is_no_request_is_not_answered_in_the_place_of_the_one_before(run: Run, data: bytes) -> None:
    async def test(stand: Stand) -> None:
        client = await stand.client()
        await client.send(NOW.replace(b"/now", b"/later") + GOOD + data)
        assert await client.rest() == b""
        await until(lambda: stand.cancelled == ["/later"])
        assert stand.paths == ["/later"]
        assert stand.is_even

    run(test)


# Any stream.

POOL = (
    NOW,
    GOOD,
    with_id(b"an-id"),
    GOOD.replace(b"/good", b"/g%C3%BC%20t?x=%20"),
    CHUNKED + chunks(b"hel", b"lo") + b"0\r\n\r\n",
    CHUNKED + b"a;e=1\r\n0123456789\r\n0\r\nx-trailer: 1\r\n\r\n",
    NOW.replace(b"/now", b"/busy"),
    b"\r\n" + NOW,
    b"DELETE /it HTTP/1.1\r\nX-A: 1\r\nx-a:2  \r\n\r\n",
)


class Persistent:
    """One server for all examples of a property; every example has connections of its own."""

    def __init__(self, runner: asyncio.Runner, handler: Callable[[Handler], Handler] = lambda own: own) -> None:
        self.runner = runner
        self.faults: list[dict[str, Any]] = []
        runner.get_loop().set_exception_handler(lambda _, context: self.faults.append(context))
        runner.run(self._start())
        self.stand.server.handler = handler(self.stand.handle)

    async def _start(self) -> None:
        self.stand = Stand(Limits(body_bytes=LIMIT))
        await self.stand.start()

    def check(self, test: Test) -> None:
        self.runner.run(asyncio.wait_for(test(self.stand), WAIT_S))
        assert self.faults == []

    def stop(self) -> None:
        self.runner.run(self.stand.stop())


def in_turn(handler: Handler) -> Handler:
    """Answers every other request only in the next round of the loop."""
    count = 0

    def handle(request: Request, reply: Reply) -> Cancel | None:
        nonlocal count
        count += 1
        if count % 2:
            return handler(request, reply)
        return asyncio.get_running_loop().call_soon(answered, handler, request, reply).cancel

    return handle


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = [0, *sorted(cut % len(data) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


async def sent_and_answered(stand: Stand, parts: Sequence[bytes]) -> bytes:
    client = await stand.client()
    reading = asyncio.create_task(client.rest())
    with contextlib.suppress(OSError):
        await client.send_apart(parts)
        client.stop_sending()
    data = await reading
    client.socket.close()
    stand.clients.remove(client)
    return data


def without_dates(found: list[Answer]) -> list[Answer]:
    return [answer._replace(headers={**answer.headers, "date": ""}) for answer in found]


@pytest.mark.parametrize("make_loop", LOOPS)
def test_however_a_stream_is_cut_the_answers_are_the_same(make_loop: MakeLoop) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        persistent = Persistent(runner, in_turn)

        @given(requests=st.lists(st.sampled_from(POOL), max_size=6), cuts=st.lists(st.integers(0, 2000), max_size=12))
        @example(requests=list(POOL), cuts=list(range(2000)))
        @settings(max_examples=60)
        def check(requests: list[bytes], cuts: list[int]) -> None:
            async def test(stand: Stand) -> None:
                stream = b"".join([*requests, CLOSE])
                alone = [answers(await sent_and_answered(stand, [request]))[0] for request in (*requests, CLOSE)]
                whole = answers(await sent_and_answered(stand, [stream]))
                cut = answers(await sent_and_answered(stand, split(stream, cuts)))
                assert [a.body for a in alone] == [a.body for a in whole]
                assert without_dates(cut) == without_dates(whole)
                await until(lambda: not stand.server.connections)
                assert stand.is_even

            persistent.check(test)

        check()
        persistent.stop()


TOKENS = (
    *(b"\r\n", b"\r", b"\n", b"\0", b"\xff", b" ", b":", b"0", b"-1", b"ffffffffffffffff", b"0\r\n\r\n", b"%", b"?"),
    *(b"GET ", b"HEAD ", b"HTTP/1.1", b"HTTP/0.9", b"connection: close\r\n", b"expect: 100-continue\r\n"),
    *(b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"upgrade: x\r\nconnection: upgrade\r\n"),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Good requests with some bytes replaced, lost or put in."""
    data = b"".join(draw(st.lists(st.sampled_from(POOL), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        lost = draw(st.sampled_from([0, 0, 1, 2, 20]))
        data = data[:start] + draw(st.sampled_from(TOKENS) | st.binary(max_size=4)) + data[start + lost :]
    return data


@pytest.mark.parametrize("make_loop", LOOPS)
def test_whatever_bytes_come_the_server_goes_on(make_loop: MakeLoop) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        persistent = Persistent(runner, in_turn)

        @given(data=st.binary(max_size=60) | mutated(), cuts=st.lists(st.integers(0, 500), max_size=3))
        @settings(max_examples=150)
        def check(data: bytes, cuts: list[int]) -> None:
            async def test(stand: Stand) -> None:
                told = await sent_and_answered(stand, split(data, cuts) if data else [])
                for head in told.split(b"HTTP/1.1 ")[1:]:
                    assert head[:3] in (b"100", b"200", b"400", b"413", b"431", b"503")
                (good,) = answers(await sent_and_answered(stand, [CLOSE]))
                assert good.said == {"method": "GET", "path": "/last", "body": ""}
                await until(lambda: not stand.server.connections)
                assert stand.is_even

            persistent.check(test)

        check()
        persistent.stop()
