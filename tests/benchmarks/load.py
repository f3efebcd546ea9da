"""Loads on one server: wrk, where each connection asks again once it is answered, and a constant rate.

wrk has no constant rate, so that the loader for it is in here. It costs the same processor's time a request on either
side, and its time counts from when a request was due: who is slow for a moment pays for all that wait meanwhile (Tene,
"How NOT to Measure Latency", 2013). Its loop sleeps by select, since epoll rounds up to whole milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import re
import selectors
import subprocess
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from open_loop import post

SCRIPT = Path(__file__).parent / "peers" / "load.lua"
CONNECTIONS = 16
PATIENCE_S = 30.0


class RequestsFailed(Exception):
    """Some requests had no answer, or one other than 200: the times of the rest say nothing."""


@dataclass(frozen=True)
class Side:
    """One server, and what it is asked: the file with the body, and the headers that go with it."""

    url: str
    body: Path
    headers: dict[str, str]


@dataclass(frozen=True)
class Seen:
    """What wrk saw: requests a second, and microseconds within which half of them were answered."""

    per_s: float
    p50: float


def wrk(side: Side, connections: int, seconds: int) -> Seen:
    """Raises RequestsFailed."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT), "--latency", side.url]
    headers = "\n".join(f"{name}: {value}" for name, value in side.headers.items())
    environment = {**os.environ, "BODY": str(side.body), "HEADERS": headers}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    found = re.search(r"(\d+) requests/s, p50 (\d+) us, p99 \d+ us, (\d+) failed", printed)
    assert found is not None, printed
    if found[3] != "0":
        raise RequestsFailed(f"{side.url}: {found[3]} requests failed at {connections} connections")
    return Seen(float(found[1]), float(found[2]))


def p99_at(side: Side, rate: float, seconds: int) -> float:
    """Microseconds, of requests that are due `rate` times a second. Raises RequestsFailed."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        times = sorted(runner.run(_Steady(side).send(rate, round(rate * seconds))))
    return times[int(0.99 * len(times))] * 1e6


class _Steady:
    """Requests at a constant rate over connections that stay open; one that is due while none is free waits for it."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._request = post(side.url, side.body.read_bytes(), side.headers)
        self._free: deque[_Connection] = deque()
        self._waiting: deque[float] = deque()
        self._times: list[float] = []
        self._failed: Counter[str] = Counter()
        self._left = 0
        self._done = asyncio.Event()

    async def send(self, rate: float, count: int) -> list[float]:
        """Seconds from when each request was due until its answer was there."""
        loop, parts = asyncio.get_running_loop(), urlsplit(self._side.url)
        self._left = count
        for _ in range(CONNECTIONS):
            await loop.create_connection(lambda: _Connection(self), parts.hostname or "", parts.port or 80)
        connections, started = list(self._free), loop.time()
        for number in range(count):
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._waiting.append(due)
            self._hand_out()
        try:
            await asyncio.wait_for(self._done.wait(), PATIENCE_S)
        except TimeoutError:
            self._failed["no answer"] += self._left
        for connection in connections:
            connection.close()
        if self._failed:
            raise RequestsFailed(f"{self._side.url}: of {count} requests at {rate:,.0f}/s failed {dict(self._failed)}")
        return self._times

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            self._free.popleft().ask(self._request, self._waiting.popleft())

    def ready(self, connection: _Connection) -> None:
        self._free.append(connection)
        self._hand_out()

    def answered(self, status: int, seconds: float) -> None:
        self._times.append(seconds)
        if status != 200:
            self._failed[str(status)] += 1
        self._count()

    def lost(self) -> None:
        self._failed["broken connection"] += 1
        self._count()

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.set()


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Steady) -> None:
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._due: float | None = None
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._load.ready(self)

    def ask(self, request: bytes, due: float) -> None:
        if self._transport.is_closing():
            self._load.lost()
            return
        self._due, self._got = due, b""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        if self._due is None or not end:
            return
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if length is None or len(body) < int(length[1]):
            return
        due, self._due = self._due, None
        self._load.answered(int(head[9:12]), self._loop.time() - due)
        self._load.ready(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._due is not None:
            self._due = None
            self._load.lost()

    def close(self) -> None:
        self._due = None
        self._transport.abort()
