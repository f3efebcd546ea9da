"""The protocol over HTTP on one endpoint: paths below `/v2/models/<name>`."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

import orjson

from tidegate.errors import RequestError
from tidegate.protocol import (
    HEADER_LENGTH,
    InferRequest,
    config_body,
    encode_response,
    metadata_body,
    parse_request,
    ready_body,
)
from tidegate.serving import compression
from tidegate.serving.batching import Rows
from tidegate.serving.exchange import Cancel, Reply, Request, Response, below, failure, later, not_found, require_method
from tidegate.serving.inference import Inference, Loaded, check_version

_HEADER_LENGTH = HEADER_LENGTH.encode()
_BINARY = b"application/octet-stream"


class HttpApi:
    """An endpoint's exchange.Handler is `handle`."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._prefix = f"/v2/models/{inference.name}"

    def handle(self, request: Request, reply: Reply) -> Cancel | None:
        rest = below(request.path, self._prefix)
        version, route = version_and_call(rest) if rest is not None else ("", None)
        if route == "/infer":
            require_method(request, "POST")
            return self._infer(version, request, reply)
        # Readiness is for whoever sends traffic here, and has no key.
        if route != "/ready":
            self._inference.check(request.headers)
        loaded = self._inference.ready()
        check_version(version, loaded)
        if route == "/stats":
            require_method(request, "GET", "HEAD")
            return later(self._statistics(loaded), request, reply)
        body = self._told(loaded, route)
        if body is None:
            raise not_found(request.path)
        require_method(request, "GET", "HEAD")
        reply(Response(HTTPStatus.OK, body))
        return None

    def _told(self, loaded: Loaded, route: str | None) -> bytes | None:
        name, signature = self._inference.name, loaded.model.signature
        if route == "":
            return metadata_body(name, [str(loaded.version)], signature)
        if route == "/ready":
            return ready_body(True, name)
        if route == "/config":
            return config_body(name, signature, loaded.batcher.max_rows)
        return None

    async def _statistics(self, loaded: Loaded) -> Response:
        return Response(HTTPStatus.OK, orjson.dumps({"model_stats": [await self._inference.statistics(loaded)]}))

    def _infer(self, version: str, request: Request, reply: Reply) -> Cancel | None:
        def read(loaded: Loaded) -> InferRequest:
            check_version(version, loaded)
            return _parsed(request, loaded)

        def write(loaded: Loaded, outputs: Rows, asked: InferRequest) -> Callable[[], None]:
            response = _written(self._inference.name, loaded, outputs, asked, request)
            return lambda: reply(response)

        def refuse(error: Exception) -> int:
            response = failure(error, request)
            reply(response)
            return response.status

        return self._inference.infer(request.headers, read, write, refuse)


def version_and_call(rest: str) -> tuple[str, str]:
    """Of a path after the endpoint's name: the version asked for, empty for any, and the call: "" or "/...\"."""
    if not rest.startswith("/versions/"):
        return "", "" if rest == "/" else rest
    version, slash, call = rest.removeprefix("/versions/").partition("/")
    return version or "none", slash + call


def _parsed(request: Request, loaded: Loaded) -> InferRequest:
    headers, limits, body = request.headers, loaded.limits, request.body
    if encoding := headers.get(b"content-encoding"):
        body = compression.unpacked(body, encoding, limits.body_bytes)
    length = _header_length(headers.get(_HEADER_LENGTH))
    return parse_request(body, loaded.model.signature, max_rows=limits.rows, header_length=length)


def _header_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise RequestError(
            f"Inference-Header-Content-Length is {value[:20].decode('latin-1')!r}", expected="a number of bytes"
        )
    return int(value)


def _written(name: str, loaded: Loaded, outputs: Rows, asked: InferRequest, request: Request) -> Response:
    body = encode_response(name, str(loaded.version), loaded.model.signature, outputs, asked)
    if body.header_length is None:
        response = Response(HTTPStatus.OK, body.content)
    else:
        length = str(body.header_length).encode()
        response = Response(HTTPStatus.OK, body.content, ((_HEADER_LENGTH, length),), _BINARY)
    accepted = request.headers.get(b"accept-encoding")
    return compression.packed(response, accepted) if accepted else response
