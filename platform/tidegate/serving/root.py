"""The application at "/": the server's metadata and health, the list of endpoints, JSON for every unknown path."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from http import HTTPStatus
from importlib import metadata
from typing import Any

import orjson
from ray import serve

from tidegate import settings
from tidegate.errors import RequestError, UnavailableError
from tidegate.protocol import EXTENSIONS, live_body, models_body, ready_body, server_body
from tidegate.serving.applications import DEPLOYMENT
from tidegate.serving.asgi import App
from tidegate.serving.exchange import (
    LOGGER,
    Cancel,
    HttpError,
    Reply,
    Request,
    Response,
    later,
    no_endpoint,
    not_found,
    require_method,
)
from tidegate.serving.gate import Access, KeyWatch, tenant_of
from tidegate.serving.grpc_messages import message
from tidegate.serving.holding import REPLACE_S, WAKE_S, Holder
from tidegate.serving.http_api import version_and_call
from tidegate.serving.limits import Limits
from tidegate.serving.listener import take_ports
from tidegate.serving.repository import Repository
from tidegate.serving.targets import ROOT, WATCH_S, Watch

_MODELS = "/v2/models"
_REPOSITORY = "/v2/repository"
# Requests that are held for a replica may wait longer than others.
_LIMITS = Limits(timeout_s=WAKE_S + 5.0)


class Root:
    """The deployment's class. A file that it watches (targets.py) tells it of the endpoints."""

    def __init__(self, home: str, is_loopback: bool) -> None:
        os.environ[settings.HOME.name] = home
        self._endpoints: dict[str, dict[str, Any]] = {}
        self._keys_required = True
        self._watch = KeyWatch()
        self._watch.refresh()
        self._targets = Watch(ROOT)
        self._holder = Holder()
        self._repository = Repository(self._watch)
        loop = asyncio.get_running_loop()
        self._chores = [loop.create_task(self._watch.run()), loop.create_task(self._follow())]
        self._version = _package_version()
        take_ports(self.handle, self.call, lambda: _LIMITS, is_loopback=is_loopback)

    def __serve_build_asgi_app__(self) -> App:
        return App(self.handle, lambda: _LIMITS)

    async def _follow(self) -> None:
        """Learns how the endpoints stand, whenever that changes."""
        while True:
            try:
                document = await asyncio.to_thread(self._targets.changed)
                if document is not None:
                    self._endpoints, self._keys_required = document["endpoints"], document["keys_required"]
            except (OSError, ValueError, KeyError) as error:
                LOGGER.warning("How the endpoints stand cannot be read: %s", error)
            await asyncio.sleep(WATCH_S)

    def handle(self, request: Request, reply: Reply) -> Cancel | None:
        """An exchange.Handler."""
        path = request.path.rstrip("/")
        if path.startswith(f"{_REPOSITORY}/"):
            return self._for_repository(path.removeprefix(_REPOSITORY), request, reply)
        bodies: dict[str, Callable[[], bytes]] = {
            "/v2": lambda: server_body("tidegate", self._version, EXTENSIONS),
            "/v2/health/live": live_body,
            "/v2/health/ready": self._all_ready,
            _MODELS: lambda: models_body(
                {name: told["ready"] for name, told in self._seen_by(request.headers).items()}
            ),
        }
        if path in bodies:
            require_method(request, "GET", "HEAD")
            reply(Response(HTTPStatus.OK, bodies[path]()))
            return None
        if path.startswith(f"{_MODELS}/"):
            name, slash, rest = path.removeprefix(f"{_MODELS}/").partition("/")
            version, call = version_and_call(slash + rest)
            if call != "/ready":
                return self._hold(name, request, reply)
            require_method(request, "GET", "HEAD")
            if not self._is_ready(self._known(name), version):
                raise _no_replica(name)
            reply(Response(HTTPStatus.OK, ready_body(True, name)))
            return None
        raise not_found(request.path)

    def _for_repository(self, path: str, request: Request, reply: Reply) -> Cancel | None:
        if path == "/index":
            require_method(request, "POST")
            reply(Response(HTTPStatus.OK, self._index(request)))
            return None
        name, _, call = path.removeprefix("/models/").partition("/")
        if not path.startswith("/models/") or call not in ("load", "unload"):
            raise not_found(request.path)
        require_method(request, "POST")
        return later(self._changed(name, call, _parameters(request.body), request.headers), request, reply)

    async def _changed(
        self, name: str, call: str, parameters: Mapping[str, object], headers: Mapping[bytes, bytes]
    ) -> Response:
        if call == "load":
            await self._repository.load(name, parameters, headers)
        else:
            await self._repository.unload(name, headers)
        return Response(HTTPStatus.OK, b"{}")

    def _hold(self, name: str, request: Request, reply: Reply) -> Cancel:
        """Requests to an endpoint come here only while it has no replica that answers."""
        seconds = self._hold_s(name, request.headers)
        return later(self._holder.hand_over(name, seconds, "answer_http", request), request, reply)

    async def call(self, method: str, request: Any, headers: Mapping[bytes, bytes]) -> Any:
        """A grpc_server.Call."""
        answer = message(f"{method}Response")
        if method == "ServerLive":
            return answer(live=True)
        if method == "ServerReady":
            return answer(ready=all(told["ready"] for told in self._endpoints.values()))
        if method == "ServerMetadata":
            return answer(name="tidegate", version=self._version, extensions=EXTENSIONS)
        if method == "RepositoryIndex":
            return answer(models=self._listed(headers, only_ready=request.ready))
        if method == "ModelReady":
            return answer(ready=self._is_ready(self._endpoints.get(request.name), request.version))
        if method.startswith("RepositoryModel"):
            parameters = {
                key: getattr(each, each.WhichOneof("parameter_choice") or "string_param")
                for key, each in request.parameters.items()
            }
            call = method.removeprefix("RepositoryModel").lower()
            await self._changed(request.model_name, call, parameters, headers)
            return answer()
        name = request.model_name if method == "ModelInfer" else request.name
        seconds = self._hold_s(name, headers)
        asked = (method, request.SerializeToString(), dict(headers))
        outcome = await self._holder.hand_over(name, seconds, "answer_grpc", *asked)
        if isinstance(outcome, HttpError):
            raise outcome
        return answer.FromString(outcome)

    def _seen_by(self, headers: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
        """The endpoints that who asks may ask, by name. Raises HttpError 401."""
        key = self._watch.key_of(headers, is_required=self._keys_required)
        return {
            name: told
            for name, told in sorted(self._endpoints.items())
            if key is None or told["access"]["is_public"] or key.may("predict", name)
        }

    def _index(self, request: Request) -> bytes:
        return orjson.dumps(self._listed(request.headers, only_ready=_wants_ready(request.body)))

    def _listed(self, headers: Mapping[bytes, bytes], *, only_ready: bool) -> list[dict[str, str]]:
        return [
            {
                "name": name,
                "version": str(told["version"] or ""),
                "state": "READY" if told["ready"] else "UNAVAILABLE",
                "reason": told["message"],
            }
            for name, told in self._seen_by(headers).items()
            if told["ready"] or not only_ready
        ]

    def _all_ready(self) -> bytes:
        waiting = sorted(name for name, endpoint in self._endpoints.items() if not endpoint["ready"])
        if waiting:
            raise UnavailableError(f"not ready: {', '.join(waiting)}")
        return ready_body(True)

    def _known(self, name: str) -> dict[str, Any]:
        """Raises HttpError 404."""
        if name not in self._endpoints:
            raise no_endpoint(name)
        return self._endpoints[name]

    def _hold_s(self, name: str, headers: Mapping[bytes, bytes]) -> float:
        """How long a request waits for a replica. Raises HttpError as the endpoint itself would, UnavailableError."""
        told = self._known(name)
        tenant_of(headers, self._watch, name, Access(**told["access"]))
        if not told["serves"]:
            raise _no_replica(name)
        return WAKE_S if told["sleeps"] else REPLACE_S

    def _is_ready(self, told: dict[str, Any] | None, version: str) -> bool:
        """An endpoint that sleeps answers, if late; any other has no replica when it is asked here."""
        return bool(told and told["ready"] and told["sleeps"] and version in ("", str(told["version"])))


def _no_replica(name: str) -> UnavailableError:
    return UnavailableError(f"endpoint {name!r} has no replica that is ready")


def _wants_ready(body: bytes) -> bool:
    wanted = _object(body, '{"ready": true}').get("ready", False)
    if not isinstance(wanted, bool):
        raise RequestError("The body is not usable", expected='nothing, or {"ready": true}')
    return wanted


def _parameters(body: bytes) -> dict[str, object]:
    form = '{"parameters": {...}}'
    parameters = _object(body, form).get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError("The body is not usable", expected=f"nothing, or {form}")
    return parameters


def _object(body: bytes, form: str) -> dict[str, object]:
    try:
        asked = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not JSON: {error}", expected=f"nothing, or {form}") from error
    if not isinstance(asked, dict):
        raise RequestError("The body is not usable", expected=f"nothing, or {form}")
    return asked


def _package_version() -> str:
    try:
        return metadata.version("tidegate")
    except metadata.PackageNotFoundError:
        # Shipped with a job as a folder, not installed.
        return "unknown"


def build(args: dict[str, Any]) -> serve.Application:
    """The Serve application at "/". Named by import path in the declarative configuration."""
    return serve.deployment(name=DEPLOYMENT)(serve.ingress()(Root)).bind(args["home"], args["is_loopback"])
