"""The ASGI application around a handler, called as a server calls it, and once by a real one."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import uvicorn

from tidegate.errors import UnavailableError
from tidegate.serving import asgi
from tidegate.serving.asgi import App
from tidegate.serving.exchange import Cancel, Reply, Request, Response
from tidegate.serving.limits import Limits

WAIT_S = 20.0
LIMIT = 10


class Desk:
    """A handler that answers at once, or later when the test says so."""

    def __init__(self, **limits: Any) -> None:
        self.asked: list[Request] = []
        self.held: list[Reply] = []
        self.cancelled: list[str] = []
        self.is_asked = asyncio.Event()
        self.app = App(self.handle, lambda: Limits(**{"body_bytes": LIMIT, **limits}))

    def handle(self, request: Request, reply: Reply) -> Cancel | None:
        self.asked.append(request)
        self.is_asked.set()
        if request.path == "/busy":
            raise UnavailableError("all hands are full")
        if request.path == "/later":
            self.held.append(reply)
            return lambda: self.cancelled.append(request.path)
        reply(Response(200, request.body.upper(), ((b"x-made-by", b"desk"),), b"text/plain"))
        return None


class Talk:
    """One call of an application: what it receives, after which nothing comes, and what it has sent."""

    def __init__(self, *received: dict[str, Any]) -> None:
        self.coming = deque(received)
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if not self.coming:
            await asyncio.Event().wait()
        return self.coming.popleft()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def with_(self, app: App, scope: dict[str, Any]) -> Talk:
        await app(scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        start, body = self.sent
        assert (start["type"], body["type"]) == ("http.response.start", "http.response.body")
        assert not body.get("more_body", False)
        return int(start["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        headers = self.sent[0]["headers"]
        assert len(dict(headers)) == len(headers)
        return dict(headers)

    @property
    def body(self) -> bytes:
        return bytes(self.sent[1]["body"])

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"])


def scope(path: str = "/now", method: str = "POST", **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": pairs}


def parts(*chunks: bytes) -> list[dict[str, Any]]:
    return [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks] + [{"type": "http.request"}]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), WAIT_S)

    asyncio.run(bounded())


def test_a_request_reaches_the_handler_whole_and_its_answer_the_server() -> None:
    async def test() -> None:
        desk = Desk()
        talk = await Talk(*parts(b"he", b"", b"llo")).with_(desk.app, scope("/a b", X_Request_Id="i-1"))
        assert desk.asked == [Request("POST", "/a b", {b"x-request-id": b"i-1"}, b"hello")]
        assert (talk.status, talk.body) == (200, b"HELLO")
        assert talk.headers == {
            b"content-type": b"text/plain",
            b"content-length": b"5",
            b"x-made-by": b"desk",
            b"x-request-id": b"i-1",
        }

    run(test)


def test_the_answer_to_head_has_the_length_of_a_body_that_is_not_sent() -> None:
    async def test() -> None:
        talk = await Talk(*parts(b"hello")).with_(Desk().app, scope(method="HEAD"))
        assert (talk.status, talk.body, talk.headers[b"content-length"]) == (200, b"", b"5")
        assert b"x-request-id" not in talk.headers

    run(test)


def test_what_a_handler_raises_is_the_answer() -> None:
    async def test() -> None:
        talk = await Talk(*parts()).with_(Desk().app, scope("/busy"))
        assert (talk.status, talk.error, talk.headers[b"retry-after"]) == (503, "all hands are full", b"1")

    run(test)


def test_a_body_that_is_too_large_is_read_to_its_end_and_refused() -> None:
    async def test() -> None:
        desk = Desk()
        talk = await Talk(*parts(b"x" * LIMIT)).with_(desk.app, scope())
        assert talk.status == 200
        talk = await Talk(*parts(b"x" * LIMIT, b"x", b"x" * 99)).with_(desk.app, scope())
        assert talk.status == 413
        assert str(LIMIT) in talk.error
        assert not talk.coming
        assert len(desk.asked) == 1

    run(test)


def test_nobody_is_asked_or_answered_when_the_client_goes_within_its_body() -> None:
    async def test() -> None:
        desk = Desk()
        received = [*parts(b"he")[:1], {"type": "http.disconnect"}]
        assert (await Talk(*received).with_(desk.app, scope())).sent == []
        assert desk.asked == []

    run(test)


def test_a_body_that_does_not_arrive_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "ARRIVE_S", 0.02)

    async def test() -> None:
        desk = Desk()
        talk = await Talk(*parts(b"he")[:1]).with_(desk.app, scope())
        assert (talk.status, desk.asked) == (408, [])
        assert "0.02 s" in talk.error

    run(test)


def test_an_answer_may_come_later_and_counts_once() -> None:
    async def test() -> None:
        desk, talk = Desk(), Talk(*parts())
        call = asyncio.create_task(talk.with_(desk.app, scope("/later")))
        await desk.is_asked.wait()
        assert talk.sent == []
        desk.held[0](Response(200, b"first"))
        desk.held[0](Response(200, b"second"))
        await call
        assert (talk.status, talk.body, desk.cancelled) == (200, b"first", [])

    run(test)


def test_an_answer_that_takes_too_long_is_504_and_its_work_is_cancelled() -> None:
    async def test() -> None:
        desk = Desk(timeout_s=0.02)
        talk = await Talk(*parts()).with_(desk.app, scope("/later", X_Request_Id="i-1"))
        assert (talk.status, talk.headers[b"x-request-id"]) == (504, b"i-1")
        assert "0.02 s" in talk.error
        assert desk.cancelled == ["/later"]
        # Too late, and to nobody.
        desk.held[0](Response(200, b""))
        assert len(talk.sent) == 2

    run(test)


def test_a_call_that_the_server_cancels_cancels_its_work() -> None:
    async def test() -> None:
        desk, talk = Desk(), Talk(*parts())
        call = asyncio.create_task(talk.with_(desk.app, scope("/later")))
        await desk.is_asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (desk.cancelled, talk.sent) == (["/later"], [])

    run(test)


def test_it_starts_and_stops_when_told_and_speaks_no_websocket() -> None:
    async def test() -> None:
        app = Desk().app
        talk = await Talk({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}).with_(app, {"type": "lifespan"})
        assert talk.sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]
        talk = await Talk({"type": "websocket.connect"}).with_(app, {"type": "websocket"})
        assert talk.sent == [{"type": "websocket.close", "code": 1000}]

    run(test)


def test_uvicorn_takes_it_for_what_it_is() -> None:
    async def test() -> None:
        desk = Desk()
        config = uvicorn.Config(desk.app, "127.0.0.1", 0, lifespan="on", ws="none", log_config=None)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            assert not serving.done()
            await asyncio.sleep(0.002)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            answer = await client.post("/a%20b?q=1", content=b"hello", headers={"X-Request-Id": "i-1"})
            assert (answer.status_code, answer.content, answer.headers["x-request-id"]) == (200, b"HELLO", "i-1")
            assert (await client.post("/now", content=b"x" * 11)).status_code == 413
        assert [request.path for request in desk.asked] == ["/a b"]
        server.should_exit = True
        await serving

    run(test)
