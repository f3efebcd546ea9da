"""The application at "/": the server's metadata and health, the list of endpoints, JSON for every unknown path."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import orjson
from ray import serve

from tidegate.errors import UnavailableError
from tidegate.protocol import live_body, ready_body, server_body
from tidegate.serving import asgi
from tidegate.serving.applications import DEPLOYMENT

_MODELS = "/v2/models"


class Root:
    """The deployment's class. `user_config` tells it which endpoints there are and whether they serve."""

    def __init__(self) -> None:
        self._ready: dict[str, bool] = {}
        self._version = _package_version()

    def __serve_build_asgi_app__(self) -> asgi.App:
        return asgi.App(self._handle)

    def reconfigure(self, config: dict[str, Any]) -> None:
        self._ready = config["ready"]

    async def _handle(self, scope: asgi.Scope, receive: asgi.Receive) -> bytes:
        path: str = scope["path"].rstrip("/")
        bodies = {
            "/v2": lambda: server_body("tidegate", self._version),
            "/v2/health/live": live_body,
            "/v2/health/ready": self._all_ready,
            _MODELS: self._models,
        }
        if path in bodies:
            asgi.require_method(scope, "GET")
            return bodies[path]()
        if path.startswith(f"{_MODELS}/"):
            raise self._no_endpoint(path.removeprefix(f"{_MODELS}/").partition("/")[0])
        raise asgi.not_found(scope["path"])

    def _models(self) -> bytes:
        return orjson.dumps({"models": [{"name": name, "ready": ready} for name, ready in sorted(self._ready.items())]})

    def _all_ready(self) -> bytes:
        waiting = sorted(name for name, ready in self._ready.items() if not ready)
        if waiting:
            raise UnavailableError(f"not ready: {', '.join(waiting)}")
        return ready_body(True)

    def _no_endpoint(self, name: str) -> Exception:
        """Requests to an endpoint come here only while Serve knows no replica of it."""
        if name in self._ready:
            return UnavailableError(f"endpoint {name!r} has no replica that is ready")
        return asgi.no_endpoint(name)


def _package_version() -> str:
    try:
        return metadata.version("tidegate")
    except metadata.PackageNotFoundError:
        # Shipped with a job as a folder, not installed.
        return "unknown"


def build(args: dict[str, str]) -> serve.Application:
    """The Serve application at "/". Named by import path in the declarative configuration."""
    return serve.deployment(name=DEPLOYMENT)(serve.ingress()(Root)).bind()
