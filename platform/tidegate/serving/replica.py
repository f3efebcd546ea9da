"""One copy of an endpoint: the ingress itself. It holds one loaded model version and speaks the protocol over ASGI.

The version travels in Serve's `user_config`. A new one is loaded beside the old one, checked, warmed up and then
swapped in one assignment; requests already taken finish on the version they met.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from tidegate.errors import TidegateError, UnavailableError
from tidegate.protocol import encode_response, metadata_body, parse_request, ready_body
from tidegate.serving import asgi
from tidegate.serving.applications import DEPLOYMENT
from tidegate.serving.batching import Batcher

if TYPE_CHECKING:
    from tidegate.artifact import Model

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_REQUEST_ROWS = 1024


@dataclass(frozen=True)
class Target:
    """What `user_config` asks a replica to serve."""

    ref: str
    version: int
    path: str
    digest: str
    max_rows: int
    capacity: dict[str, Any]
    """For the arbiter, who reads it in Serve's account of the deployment; a replica does nothing with it."""


@dataclass(frozen=True)
class Loaded:
    """A version that is ready to answer."""

    target: Target
    model: Model
    batcher: Batcher


class Replica:
    """The deployment's class; `build` wraps it as a Serve ingress."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loaded: Loaded | None = None
        self._failed: dict[str, Any] | None = None
        self._loading = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    def __serve_build_asgi_app__(self) -> asgi.App:
        return asgi.App(self._handle)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serves the version `config` names. Raises only when no version is served yet.

        Serve stops a replica whose `reconfigure` raises, and its replacement would fail in the same way: the version
        that serves well would be lost. So a failure is kept for `record_routing_stats` to tell, and the old one stays.
        """
        async with self._loading:
            target = Target(**config)
            try:
                loaded = await self._prepare(target)
            except Exception as error:
                if self._loaded is None:
                    raise
                asgi.LOGGER.exception("Version %s does not load; %s stays.", target.ref, self._loaded.target.ref)
                self._failed = {"config": config, "message": _sentence(error)}
            else:
                self._swap(loaded)

    async def record_routing_stats(self) -> dict[str, Any]:
        """What this replica serves and what it failed to load: the deployer reads it to know how a rollout went."""
        return {"serving": asdict(self._loaded.target) if self._loaded else None, "failed": self._failed}

    async def _prepare(self, target: Target) -> Loaded:
        if self._loaded is not None and self._loaded.target.digest == target.digest:
            model = self._loaded.model
        else:
            model = await asyncio.to_thread(load_checked, target)
        return Loaded(target, model, Batcher(model.predict, target.max_rows))

    def _swap(self, loaded: Loaded) -> None:
        old, self._loaded, self._failed = self._loaded, loaded, None
        if old is not None:
            closing = asyncio.create_task(old.batcher.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _handle(self, scope: asgi.Scope, receive: asgi.Receive) -> bytes:
        # The body comes first: from here on nothing waits until the request is in a batcher, so that no swap comes
        # between choosing the version and asking it.
        body = await asgi.read_body(scope, receive, MAX_BODY_BYTES) if scope["method"] == "POST" else b""
        loaded, path = self._loaded, asgi.relative_path(scope)
        if loaded is None:
            raise UnavailableError(f"endpoint {self._name!r} is loading its model")
        route = None if path is None else _route(path, loaded.target.version)
        if route == "/infer":
            asgi.require_method(scope, "POST")
            return await self._infer(loaded, body)
        if route == "":
            asgi.require_method(scope, "GET")
            return metadata_body(self._name, [str(loaded.target.version)], loaded.model.signature)
        if route == "/ready":
            asgi.require_method(scope, "GET")
            return ready_body(True, self._name)
        raise asgi.not_found(scope["path"])

    async def _infer(self, loaded: Loaded, body: bytes) -> bytes:
        signature = loaded.model.signature
        request = parse_request(body, signature, max_rows=MAX_REQUEST_ROWS)
        outputs = await loaded.batcher.submit(request.inputs)
        return encode_response(self._name, str(loaded.target.version), signature, outputs, request)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, TidegateError) else f"{type(error).__name__}: {error}"


def _route(path: str, version: int) -> str | None:
    """`path` without `/versions/<the loaded version>`. None for another version."""
    if not path.startswith("/versions/"):
        return path.rstrip("/") if path == "/" else path
    number, _, rest = path.removeprefix("/versions/").partition("/")
    return (f"/{rest}" if rest else "") if number == str(version) else None


def load_checked(target: Target) -> Model:
    """Loads the artifact, verifies its digest and asks it one row. Raises ArtifactError and what the model raises."""
    # Imported here: the process that only builds the Serve application needs no torch.
    from tidegate.artifact import load

    started = time.monotonic()
    model = load(Path(target.path), target.digest, _device())
    model.predict(model.example())
    asgi.LOGGER.info("Loaded %s in %.2f s.", target.ref, time.monotonic() - started)
    return model


def _device() -> str:
    """Where a replica computes: on its GPU, if it has one that is more than a number to Ray."""
    import torch

    given = ray.get_runtime_context().get_accelerator_ids().get("GPU")
    return "cuda" if given and torch.cuda.is_available() else "cpu"


def build(args: dict[str, str]) -> serve.Application:
    """The Serve application of endpoint `args["name"]`. Named by import path in the declarative configuration."""
    return serve.deployment(name=DEPLOYMENT)(serve.ingress()(Replica)).bind(args["name"])
