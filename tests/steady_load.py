"""A steady load of many clients on an endpoint that never try again, and an account of every answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Account:
    """`failures`: what went wrong -> how often; `statuses`: of the answers; `answers`: the bodies of those with 200."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def __str__(self) -> str:
        return (
            f"{sum(self.statuses.values())} answers {dict(self.statuses)}, {self.failed} failed {dict(self.failures)}, "
            f"slowest {self.slowest_s * 1000:.0f} ms, versions {dict(self.versions)}"
        )


@contextmanager
def steady_load(
    url: str,
    body: Mapping[str, Any],
    *,
    clients: int = 32,
    pause_s: float = 0.02,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> Iterator[Account]:
    """Sends `body` from so many clients, each one request after the other, until the block ends."""
    account, stop = Account(), threading.Event()

    async def client(http: httpx.AsyncClient) -> None:
        while not stop.is_set():
            started = time.monotonic()
            try:
                answer = await http.post(url, json=body, headers=headers)
            except httpx.HTTPError as error:
                account.failures[repr(error)[:120]] += 1
            else:
                account.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    account.versions[answer.json().get("model_version", "")] += 1
                else:
                    account.failures[f"{answer.status_code} {answer.text[:100]}"] += 1
            took = time.monotonic() - started
            account.latencies.append(took)
            account.slowest_s = max(account.slowest_s, took)
            await asyncio.sleep(pause_s)

    async def everyone() -> None:
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(limits=limits, timeout=timeout_s, trust_env=False) as http:
            await asyncio.gather(*(client(http) for _ in range(clients)))

    thread = threading.Thread(target=lambda: asyncio.run(everyone()))
    thread.start()
    try:
        while not account.statuses[200] and thread.is_alive():
            time.sleep(0.05)
        yield account
    finally:
        stop.set()
        thread.join()
