"""Requests at a rate of their own, whatever becomes of those before: the load that many independent people are.

Arrivals are Poisson's. A request goes out on a connection that is free, or on a new one; its time counts from when it
was due, so that a late sender hides nothing (Tene, "How NOT to Measure Latency", 2013).
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Answers:
    """`seconds`: of the answers with 200, by when they came; `refused`: those with a time to come back."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    lost: int = 0

    def quantile(self, q: float) -> float:
        """Seconds within which the part `q` of the answered requests was answered."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(q * len(self.seconds)))]


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and head of the answer, whose body is read."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await self.reader.readexactly(int(found[1]) if found else 0)
        return int(head[9:12]), head


def post(url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """The bytes of a request."""
    parts = urlsplit(url)
    lines = {"Host": parts.netloc, "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {parts.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def offer(url: str, request: bytes, rate: float, seconds: float, seed: int = 0) -> Answers:
    """What became of `rate` requests a second."""
    return asyncio.run(_offer(url, request, rate, seconds, random.Random(seed)))


async def _offer(url: str, request: bytes, rate: float, seconds: float, dice: random.Random) -> Answers:
    parts = urlsplit(url)
    answers, free, under_way = Answers(), list[_Connection](), set[asyncio.Task[None]]()

    async def one(due: float) -> None:
        try:
            connection = free.pop() if free else _Connection(*await asyncio.open_connection(parts.hostname, parts.port))
            status, head = await connection.ask(request)
        except (OSError, asyncio.IncompleteReadError):
            answers.lost += 1
            return
        answers.statuses[status] += 1
        answers.refused += status in (429, 503) and b"retry-after" in head.lower()
        if status == 200:
            answers.seconds.append(time.perf_counter() - due)
        free.append(connection)

    started = due = time.perf_counter()
    while due < started + seconds:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        due += dice.expovariate(rate)
    await asyncio.gather(*under_way)
    for connection in free:
        connection.writer.close()
    return answers
