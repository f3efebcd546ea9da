"""The client of coroutines: what it shares with the other is tested there; here that it waits without blocking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from http_endpoint import Endpoint, drop, rows, serving, status
from ports import free_port
from tidegate import client_retries
from tidegate.async_client import AsyncClient
from tidegate.client import Client
from tidegate.errors import AccessError, ClusterError, NotFoundError, RequestError, UnavailableError


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(client_retries, "DELAYS_S", (0.01, 0.01, 0.01))
    monkeypatch.delenv("TIDEGATE_API_KEY", raising=False)
    with serving() as endpoint:
        yield endpoint


def test_it_says_what_the_other_client_says(endpoint: Endpoint) -> None:
    async def ask() -> list[Any]:
        async with AsyncClient(endpoint.url) as client:
            assert repr(client) == f"AsyncClient({endpoint.url!r})"
            return [
                await client.live(),
                await client.ready(),
                await client.ready("m"),
                await client.models(),
                await client.metadata("m"),
                await client.statistics("m"),
                (await client.predict("m", rows(300)))["total"].tolist(),
            ]

    with Client(endpoint.url) as client:
        answers = client.predict("m", rows(300))["total"].tolist()
        assert asyncio.run(ask()) == [
            client.live(),
            client.ready(),
            client.ready("m"),
            client.models(),
            client.metadata("m"),
            client.statistics("m"),
            answers,
        ]
    assert set(endpoint.forms) == {"binary"}


def test_many_predictions_at_once(endpoint: Endpoint) -> None:
    async def ask() -> list[dict[str, Any]]:
        async with AsyncClient(endpoint.url, timeout_s=5) as client:
            return await asyncio.gather(*(client.predict("m", {"x": [[i, i]], "word": [str(i)]}) for i in range(400)))

    for i, answer in enumerate(asyncio.run(ask())):
        np.testing.assert_array_equal(answer["total"], np.array([2 * i], np.float32))
        assert answer["echo"].tolist() == [str(i)]
    assert endpoint.calls.count("GET /v2/models/m") == 1


def test_a_wait_holds_up_nobody_else(endpoint: Endpoint) -> None:
    async def ask() -> float:
        async with AsyncClient(endpoint.url) as client:
            await client.predict("m", rows(1))
            endpoint.faults = [status(503, Retry_After="2")]
            slow = asyncio.create_task(client.predict("m", rows(1)))
            while endpoint.faults:
                await asyncio.sleep(0.01)
            started = time.monotonic()
            await asyncio.gather(*(client.predict("m", rows(1)) for _ in range(20)))
            taken = time.monotonic() - started
            assert not slow.done()
            assert (await slow)["total"].tolist() == [1.0]
            return taken

    assert asyncio.run(ask()) < 1.5


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(drop, UnavailableError), (status(400), RequestError), (status(403), AccessError), (status(404), NotFoundError)],
)
def test_errors_are_those_of_the_other_client(endpoint: Endpoint, fault: Any, kind: type[Exception]) -> None:
    async def ask() -> None:
        async with AsyncClient(endpoint.url) as client:
            await client.metadata("m")
            endpoint.faults = [fault] * 9
            with pytest.raises(kind):
                await client.predict("m", rows(1))

    asyncio.run(ask())


def test_nothing_listening() -> None:
    async def ask() -> None:
        async with AsyncClient(f"http://127.0.0.1:{free_port()}") as client:
            assert not await client.live()
            with pytest.raises(ClusterError, match="Nothing answers"):
                await client.predict("m", rows(1))

    asyncio.run(ask())
