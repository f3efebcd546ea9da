"""An HTTP client for endpoints: numpy arrays and lists in, numpy arrays out, without ray or torch."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import orjson

from tidegate import protocol
from tidegate.errors import (
    ArtifactError,
    ClusterError,
    NotFoundError,
    RequestError,
    TidegateError,
    UnavailableError,
)
from tidegate.protocol import Signature
from tidegate.tensors import Array

DEFAULT_URL = "http://127.0.0.1:8000"
CHUNK_ROWS = 256
RETRY_DELAYS_S = (0.1, 0.4, 1.6)

_log = logging.getLogger(__name__)
_JSON = {"Content-Type": "application/json"}
_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)


@dataclass(frozen=True)
class Metadata:
    """What an endpoint says of itself."""

    name: str
    versions: tuple[str, ...]
    platform: str
    signature: Signature


class Client:
    """Talks to the endpoints at `url`; `timeout_s` bounds each wait for the network. A context manager; thread-safe.

    Calls raise ClusterError when nothing listens, NotFoundError, RequestError and UnavailableError as the server says.
    A 503 and a connection that breaks are retried three times within about two seconds: a prediction changes nothing on
    the server.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float = 30.0) -> None:
        self.url = _base(url)
        local = _is_loopback(self.url)
        # Without TLS there is nothing to verify, and reading the certificates takes longer than a prediction.
        verify = not local or self.url.startswith("https")
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=not local, verify=verify)
        self._metadata: dict[str, Metadata] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def live(self) -> bool:
        """Whether the server answers; False, too, when nothing listens."""
        return self._probe("/v2/health/live", "live")

    def ready(self, name: str | None = None) -> bool:
        """Whether the server, or that endpoint, takes requests. Raises NotFoundError for an unknown endpoint."""
        return self._probe("/v2/health/ready" if name is None else f"{_path(name)}/ready", "ready")

    def models(self) -> list[str]:
        """The names of all endpoints, ready or not."""
        models = _json(self._call("GET", "/v2/models")).get("models")
        if not isinstance(models, list):
            raise _strange(self.url, "no list of models")
        try:
            return [str(model["name"]) for model in models]
        except (TypeError, KeyError) as error:
            raise _strange(self.url, "models without names") from error

    def metadata(self, name: str) -> Metadata:
        """The endpoint's versions and signature, asked for anew and kept for `predict`."""
        body = _json(self._call("GET", _path(name)))
        versions = body.get("versions") or []
        try:
            signature = Signature.from_json(body)
        except ArtifactError as error:
            raise _strange(self.url, error.happened) from error
        if not isinstance(versions, list):
            raise _strange(self.url, "no list of versions")
        self._metadata[name] = Metadata(
            name, tuple(str(version) for version in versions), str(body.get("platform", "")), signature
        )
        return self._metadata[name]

    def predict(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The endpoint's outputs for `inputs`: column -> array or list, one entry a row, any number of rows.

        Datatypes come from the endpoint's signature, which is read once and again when a request is refused: the
        endpoint may have moved to another version. More than 256 rows travel in several requests.
        """
        known = self._metadata.get(name)
        if known is None:
            return self._predict(name, inputs, self.metadata(name).signature)
        try:
            return self._predict(name, inputs, known.signature)
        except (RequestError, NotFoundError):
            signature = self.metadata(name).signature
            if signature == known.signature:
                raise
        return self._predict(name, inputs, signature)

    def _predict(self, name: str, inputs: Mapping[str, Any], signature: Signature) -> dict[str, Array]:
        path = f"{_path(name)}/infer"
        bodies = (protocol.encode_request(chunk, signature) for chunk in _chunks(inputs))
        parts = [protocol.parse_response(self._call("POST", path, body).content) for body in bodies]
        return _joined(parts)

    def _probe(self, path: str, key: str) -> bool:
        try:
            response = self._http.get(path)
        except httpx.TransportError:
            return False
        return response.status_code < 500 and _json(_checked(response)).get(key) is True

    def _call(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        request = self._http.build_request(method, path, content=body, headers=_JSON if body else None)
        with _typed_errors(self.url):
            for delay_s in RETRY_DELAYS_S:
                try:
                    response = self._http.send(request)
                    if response.status_code != 503:
                        return _checked(response)
                    reason = _message(response)
                except _BROKEN as error:
                    reason = str(error) or type(error).__name__
                _log.warning("%s %s: %s; trying again in %.1f s", method, path, reason, delay_s)
                time.sleep(delay_s)
            return _checked(self._http.send(request))


def curl_line(url: str, name: str, body: bytes | str) -> str:
    """A shell command that sends `body` to the endpoint, to copy and paste."""
    text = body.decode() if isinstance(body, bytes) else body
    target = f"{_base(url)}{_path(name)}/infer"
    return shlex.join(["curl", "-sS", "-H", "Content-Type: application/json", "--data-raw", text, target])


def _path(name: str) -> str:
    return f"/v2/models/{quote(name, safe='')}"


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClusterError(f"{url!r} is no URL of a server", expected=f"such as {DEFAULT_URL}")
    return url.rstrip("/")


def _is_loopback(url: str) -> bool:
    """Whether a proxy from the environment must stay out of the way."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _typed_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ClusterError(
            f"Nothing answers at {url}: {error}",
            remedy="Start the cluster with `tidegate up`, or pass the URL of one that runs",
        ) from error
    except httpx.TimeoutException as error:
        raise UnavailableError(f"{url} did not answer in time", remedy="Allow more with timeout_s") from error
    except _BROKEN as error:
        raise UnavailableError(f"The connection to {url} broke: {error}", remedy="Try again") from error
    except httpx.HTTPError as error:
        raise _strange(url, f"an unusable answer: {error}") from error


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    raise _error_type(response.status_code)(_message(response))


def _error_type(status: int) -> type[TidegateError]:
    if status == 404:
        return NotFoundError
    if status in (408, 429, 502, 503, 504):
        return UnavailableError
    return RequestError if 400 <= status < 500 else ClusterError


def _message(response: httpx.Response) -> str:
    try:
        return str(orjson.loads(response.content)["error"])
    except (ValueError, TypeError, KeyError):
        return f"{response.url} answered {response.status_code}: {response.text[:200].strip() or 'nothing'}"


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = orjson.loads(response.content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise _strange(str(response.url), "no JSON object")
    return body


def _strange(url: str, what: str) -> ClusterError:
    return ClusterError(f"{url} answered {what}", remedy="Check that the URL is that of a Tidegate cluster")


def _chunks(inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    columns = {name: _sliceable(name, values) for name, values in inputs.items()}
    rows = {name: len(values) for name, values in columns.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise RequestError(f"The inputs have {rows or 'no'} rows", expected="the same number in each, at least 1")
    for start in range(0, next(iter(rows.values())), CHUNK_ROWS):
        yield {name: values[start : start + CHUNK_ROWS] for name, values in columns.items()}


def _sliceable(name: str, values: Any) -> Any:
    # A list stays one: numpy would turn [1, "a"] into text before the check that refuses it.
    if isinstance(values, list | tuple):
        return values
    array = np.asarray(values)
    if array.ndim == 0:
        raise RequestError(f'Input "{name}" is a single value', expected="a list or array with one entry a row")
    return array


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except (KeyError, ValueError) as error:
        raise UnavailableError(
            f"Answers to parts of the rows differ in outputs or shapes: {error}",
            remedy=f"Send at most {CHUNK_ROWS} rows at a time",
        ) from error
