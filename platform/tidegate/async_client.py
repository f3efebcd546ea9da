"""The client for endpoints as coroutines: any number of calls at once, on one connection pool."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tidegate.client_calls import Ask, Calls, Metadata, Pause, Steps
from tidegate.client_server import DEFAULT_URL, server
from tidegate.tensors import Array

AT_ONCE = 32
"""Requests on the wire at a time. More make httpx slow, which looks through all that wait whenever one is answered."""

T = TypeVar("T")


class AsyncClient:
    """As Client, with coroutines. It belongs to the event loop that uses it first; an async context manager."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry_s: float = 10.0,
        ca_file: str | Path | None = None,
        verify: bool = True,
    ) -> None:
        asked = server(url, api_key, ca_file, verify)
        self.url = asked.shown
        self._calls = Calls(asked, retry_s)
        self._http = httpx.AsyncClient(**asked.options(timeout_s))
        self._asking = asyncio.Lock()
        self._room = asyncio.Semaphore(AT_ONCE)

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def live(self) -> bool:
        """Whether the server answers; False, too, when nothing listens."""
        return await self._run(self._calls.probe(None, "live"))

    async def ready(self, name: str | None = None) -> bool:
        """Whether the server, or that endpoint, takes requests. Raises NotFoundError for an unknown endpoint."""
        return await self._run(self._calls.probe(name, "ready"))

    async def models(self) -> list[str]:
        """The names of all endpoints, ready or not."""
        return await self._run(self._calls.models())

    async def metadata(self, name: str) -> Metadata:
        """The endpoint's versions and signature, asked for anew and kept for `predict`."""
        return await self._run(self._calls.metadata(name))

    async def statistics(self, name: str) -> dict[str, Any]:
        """What the replica that answers has counted since its start: requests, rows, passes and where time went."""
        return await self._run(self._calls.statistics(name))

    async def predict(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """As Client.predict. Many at once share some connections and wait for them, however long."""
        if name not in self._calls.known:
            async with self._asking:
                # Of many first calls one asks.
                if name not in self._calls.known:
                    await self.metadata(name)
        return await self._run(self._calls.predict(name, inputs))

    async def _run(self, steps: Steps[T]) -> T:
        answer: httpx.Response | Exception | None = None
        while True:
            try:
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = await self._done(step)

    async def _done(self, step: Ask | Pause) -> httpx.Response | Exception | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            async with self._room:
                return await self._http.request(step.method, step.path, content=step.content, headers=step.headers)
        except httpx.HTTPError as error:
            return error
