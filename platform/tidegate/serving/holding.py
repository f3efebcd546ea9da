"""Requests to endpoints that have no replica now: held until one is there, then handed over.

An endpoint that sleeps (`replicas.min: 0`) is woken this way, and one whose only replica died loses nothing. HAProxy
sends such requests to the root, which lets nobody wake an endpoint who may not ask it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from http import HTTPStatus
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from tidegate.errors import UnavailableError
from tidegate.serving.applications import DEPLOYMENT, name_of
from tidegate.serving.exchange import LOGGER, HttpError
from tidegate.serving.limits import Limits

WAKE_S = 180.0
"""So long a request waits for the replica that it wakes: one starts as fast as its model loads."""
REPLACE_S = 30.0
"""So long a request waits for another replica where the only one was lost."""
_ATTEMPTS = 3


class Holder:
    """Hands requests over through Serve's handles, whose queue is what makes Serve start a replica."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._handles: dict[str, DeploymentHandle[Any]] = {}

    async def hand_over(self, endpoint: str, seconds: float, method: str, *arguments: Any) -> Any:
        """What the replica's `method` returns. Raises UnavailableError and HttpError 504."""
        if self._held[endpoint] >= Limits.queue:
            raise UnavailableError(f"endpoint {endpoint!r} is starting, and {Limits.queue} requests wait for it")
        self._held[endpoint] += 1
        try:
            return await asyncio.wait_for(self._asked(endpoint, method, arguments), seconds)
        except TimeoutError:
            message = f"no replica of endpoint {endpoint!r} came within {seconds:g} s"
            raise HttpError(HTTPStatus.GATEWAY_TIMEOUT, message) from None
        finally:
            self._held[endpoint] -= 1

    async def _asked(self, endpoint: str, method: str, arguments: tuple[Any, ...]) -> Any:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                # Predictions are safe to ask again: one whose replica died goes to the next.
                return await getattr(await self._handle(endpoint), method).remote(*arguments)
            except (RayError, RayServeException) as error:
                sentence = "Attempt %d of %d to hand a request to endpoint %s failed: %s"
                LOGGER.warning(sentence, attempt, _ATTEMPTS, endpoint, error)
        raise UnavailableError(f"endpoint {endpoint!r} has no replica that is ready")

    async def _handle(self, endpoint: str) -> DeploymentHandle[Any]:
        if endpoint not in self._handles:
            # It asks Serve's controller, which may be away for a moment.
            self._handles[endpoint] = await asyncio.to_thread(
                serve.get_deployment_handle, DEPLOYMENT, name_of(endpoint)
            )
        return self._handles[endpoint]
