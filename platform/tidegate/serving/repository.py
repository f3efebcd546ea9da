"""Endpoints deployed and taken away over the protocol: Triton's calls `load` and `unload`, in the words of Tidegate.

Whoever may do that shows a key with the scope `deploy`, on loopback, too: unlike a request for an answer this changes
what others get.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from tidegate.errors import ConflictError, RequestError, TidegateError, UnavailableError
from tidegate.serving.desired import NAMESPACE, OWNER
from tidegate.serving.exchange import HttpError, no_endpoint
from tidegate.serving.gate import KeyWatch
from tidegate.spec import document
from tidegate.spec.endpoint import Endpoint

LOAD_S = 170.0
"""So long a load is waited for; it goes on afterwards."""
_POLL_S = 0.2


class Repository:
    """Has the deployer do what is asked for; it alone changes endpoints."""

    def __init__(self, watch: KeyWatch) -> None:
        self._watch = watch

    async def load(self, name: str, parameters: Mapping[str, object], headers: Mapping[bytes, bytes]) -> None:
        """Deploys the endpoint again, so that it takes up what its model reference means now.

        The parameter `model` gives it another reference; an endpoint that there is not yet serves that, or the model of
        its own name. Returns when it serves. Raises HttpError and TidegateError.
        """
        self._check(name, headers)
        model = parameters.get("model", "")
        if parameters.keys() - {"model"} or not isinstance(model, str):
            raise RequestError(
                f"The parameters {', '.join(sorted(parameters))} are not usable",
                expected='none, or {"model": a reference such as "digits@3"}',
            )
        document.parse(Endpoint, {"name": name, "model": model or name}, source="the request")
        generation = await _asked("reload", name, model)
        deadline = time.monotonic() + LOAD_S
        while time.monotonic() < deadline:
            progress = await _asked("progress", name)
            if progress is None or progress.generation != generation:
                raise ConflictError(f"endpoint {name!r} was deployed again or removed meanwhile")
            if progress.failure is not None and progress.failure.generation == generation:
                raise ConflictError(f"{progress.failure.pinned.ref} does not serve: {progress.failure.message}")
            if progress.is_settled:
                return
            await asyncio.sleep(_POLL_S)
        raise UnavailableError(f"endpoint {name!r} does not serve yet", remedy="it is still being tried; ask again")

    async def unload(self, name: str, headers: Mapping[bytes, bytes]) -> None:
        """Takes the endpoint away. Its model versions stay. Raises HttpError."""
        self._check(name, headers)
        if not await _asked("remove", name):
            raise no_endpoint(name)

    def _check(self, name: str, headers: Mapping[bytes, bytes]) -> None:
        key = self._watch.key_of(headers, is_required=True)
        if key is not None and not key.may("deploy", name):
            raise HttpError(HTTPStatus.FORBIDDEN, f"this key may not deploy endpoint {name!r}")


async def _asked(method: str, *arguments: Any) -> Any:
    """Calls the deployer. Raises what it raised."""
    try:
        actor = await asyncio.to_thread(ray.get_actor, OWNER, NAMESPACE)
        return await getattr(actor, method).remote(*arguments)
    except RayTaskError as error:
        if isinstance(error.cause, TidegateError):
            raise error.cause from None
        raise
    except (RayActorError, ValueError) as error:
        raise UnavailableError("the owner of the endpoints does not answer; try again later") from error
