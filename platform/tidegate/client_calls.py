"""What a client asks a server and makes of the answers, without a connection: both clients carry it out.

A call is a generator. It yields requests and pauses, is sent the response to each request (or thrown what httpx
raised), and returns the result.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import httpx
import numpy as np

from tidegate import client_answers as answers
from tidegate import protocol, ragged
from tidegate.client_retries import Retries
from tidegate.client_server import Server
from tidegate.content import objects
from tidegate.errors import ArtifactError, NotFoundError, RequestError, UnavailableError
from tidegate.protocol import HEADER_LENGTH, Body, Signature
from tidegate.signature import TensorSpec
from tidegate.tensors import Array

CHUNK_ROWS = 256
CHUNK_BYTES, MOST_BYTES = 4 * 2**20, 8 * 2**20
"""About how large a request is made at most, and how large it may turn out: what an endpoint takes by default."""

_log = logging.getLogger(__name__)
_JSON = {"Content-Type": "application/json"}
_NO_BINARY = (400, 415, 422, 501)
"""What a server answers to the binary form that does not know it; also what it answers to a request that is wrong."""

T = TypeVar("T")


class Ask(NamedTuple):
    """A request to send."""

    method: str
    path: str
    content: bytes | None = None
    headers: Mapping[str, str] = {}


class Pause(NamedTuple):
    """A wait."""

    seconds: float


Steps = Generator[Ask | Pause, httpx.Response | None, T]


@dataclass(frozen=True)
class Metadata:
    """What an endpoint says of itself."""

    name: str
    versions: tuple[str, ...]
    platform: str
    signature: Signature


@dataclass
class Calls:
    """The calls on one server, and what was learned of it: signatures, and whether it takes tensors as bytes."""

    server: Server
    retry_s: float
    known: dict[str, Metadata] = field(default_factory=dict)
    takes_binary: bool | None = None
    """None until it answered a request in the binary form."""

    def probe(self, name: str | None, key: str) -> Steps[bool]:
        """`key` of a health or readiness call; False when nothing listens."""
        path = f"/v2/health/{key}" if name is None else f"{model_path(name)}/{key}"
        try:
            response = yield from _sent(Ask("GET", path))
        except httpx.TransportError:
            return False
        return response.status_code < 500 and answers.document(answers.checked(response)).get(key) is True

    def models(self) -> Steps[list[str]]:
        found = answers.document((yield from self._checked(Ask("GET", "/v2/models")))).get("models")
        if not isinstance(found, list):
            raise answers.strange(self.server.shown, "no list of models")
        try:
            return [str(model["name"]) for model in found]
        except (TypeError, KeyError) as error:
            raise answers.strange(self.server.shown, "models without names") from error

    def metadata(self, name: str) -> Steps[Metadata]:
        body = answers.document((yield from self._checked(Ask("GET", model_path(name)))))
        versions = body.get("versions") or []
        try:
            signature = Signature.from_json(body)
        except ArtifactError as error:
            raise answers.strange(self.server.shown, error.happened) from error
        if not isinstance(versions, list):
            raise answers.strange(self.server.shown, "no list of versions")
        found = Metadata(name, tuple(map(str, versions)), str(body.get("platform", "")), signature)
        self.known[name] = found
        return found

    def statistics(self, name: str) -> Steps[dict[str, Any]]:
        body = answers.document((yield from self._checked(Ask("GET", f"{model_path(name)}/stats"))))
        found = body.get("model_stats")
        if not isinstance(found, list) or not found or not isinstance(found[0], dict):
            raise answers.strange(self.server.shown, "no statistics")
        return found[0]

    def predict(self, name: str, inputs: Mapping[str, Any]) -> Steps[dict[str, Array]]:
        known = self.known.get(name)
        if known is None:
            found = yield from self.metadata(name)
            return (yield from self._predict(name, inputs, found.signature))
        try:
            return (yield from self._predict(name, inputs, known.signature))
        except (RequestError, NotFoundError):
            found = yield from self.metadata(name)
            if found.signature == known.signature:
                raise
        return (yield from self._predict(name, inputs, found.signature))

    def _predict(self, name: str, inputs: Mapping[str, Any], signature: Signature) -> Steps[dict[str, Array]]:
        parts = ragged.grouped(_columns(inputs, signature))
        answered: list[dict[str, Array]] = []
        for _, part in parts:
            answered.append((yield from self._predict_alike(name, part, signature)))
        return ragged.in_order([rows for rows, _ in parts], answered)

    def _predict_alike(self, name: str, columns: Mapping[str, Any], signature: Signature) -> Steps[dict[str, Array]]:
        rows = len(next(iter(columns.values())))
        most, start = _rows_at_once(columns), 0
        parts: list[dict[str, Array]] = []
        while start < rows:
            chunk = {key: values[start : start + most] for key, values in columns.items()}
            size = min(most, rows - start)
            response = yield from self._infer(name, chunk, signature, is_divisible=size > 1)
            if response is None:
                most = size // 2
                continue
            length = answers.header_length(response, HEADER_LENGTH)
            parts.append(protocol.parse_response(response.content, length))
            start += size
        return _joined(parts)

    def _infer(
        self, name: str, chunk: Mapping[str, Any], signature: Signature, *, is_divisible: bool
    ) -> Steps[httpx.Response | None]:
        """The response; None when the request is too large and can be divided."""
        is_binary = self.takes_binary is not False
        body = protocol.encode_request(chunk, signature, as_json=not is_binary)
        if is_divisible and len(body.content) > MOST_BYTES:
            return None
        response = yield from self._sent_again(_infer_ask(name, body))
        if self.takes_binary is None and response.status_code in _NO_BINARY:
            response = (yield from self._as_json(name, chunk, signature)) or response
        elif is_binary and response.is_success:
            self.takes_binary = True
        if is_divisible and response.status_code == 413:
            return None
        return answers.checked(response)

    def _as_json(self, name: str, chunk: Mapping[str, Any], signature: Signature) -> Steps[httpx.Response | None]:
        """The answer to the same request as JSON; a success shows that the server takes no other form."""
        try:
            body = protocol.encode_request(chunk, signature)
        except RequestError:
            # FP16 has no JSON form.
            return None
        response = yield from self._sent_again(_infer_ask(name, body))
        if response.is_success and self.takes_binary is None:
            self.takes_binary = False
            _log.info("%s takes tensors as JSON only", self.server.shown)
        return response

    def _checked(self, ask: Ask) -> Steps[httpx.Response]:
        return answers.checked((yield from self._sent_again(ask)))

    def _sent_again(self, ask: Ask) -> Steps[httpx.Response]:
        """The response, after more tries while the server has no room or the connection breaks.

        Nothing that is asked here changes anything on the server, so that it may be asked twice.
        """
        retries = Retries(self.retry_s)
        with answers.typed_errors(self.server.shown):
            while True:
                after_s = None
                try:
                    response = yield from _sent(ask)
                    if response.status_code not in (429, 503):
                        return response
                    after_s = answers.retry_after_s(response)
                    reason = answers.message(response)
                except answers.BROKEN as error:
                    reason, pause = str(error) or type(error).__name__, retries.pause()
                    if pause is None:
                        raise
                else:
                    pause = retries.pause(after_s)
                    if pause is None:
                        return response
                _log.warning("%s %s: %s; trying again in %.1f s", ask.method, ask.path, reason, pause)
                yield Pause(pause)


def model_path(name: str) -> str:
    return f"/v2/models/{quote(name, safe='')}"


def _sent(ask: Ask) -> Steps[httpx.Response]:
    response = yield ask
    assert response is not None
    return response


def _infer_ask(name: str, body: Body) -> Ask:
    headers = _JSON
    if body.header_length is not None:
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(body.header_length)}
    return Ask("POST", f"{model_path(name)}/infer", body.content, headers)


def _columns(inputs: Mapping[str, Any], signature: Signature) -> dict[str, Any]:
    specs = {spec.name: spec for spec in signature.inputs}
    columns = {name: _sliceable(name, values, specs.get(name)) for name, values in inputs.items()}
    rows = {name: len(values) for name, values in columns.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise RequestError(f"The inputs have {rows or 'no'} rows", expected="the same number in each, at least 1")
    return columns


def _sliceable(name: str, values: Any, spec: TensorSpec | None) -> Any:
    if (
        spec is not None
        and -1 in spec.shape[1:]
        and isinstance(values, list | tuple)
        and (rows := _of_any_size(values)) is not None
    ):
        return rows
    # A list stays one: numpy would turn [1, "a"] into text before the check that refuses it.
    if isinstance(values, list | tuple):
        return values
    array = np.asarray(values)
    if array.ndim == 0:
        raise RequestError(f'Input "{name}" is a single value', expected="a list or array with one entry a row")
    return array


def _of_any_size(values: Sequence[Any]) -> Array | None:
    """Rows of different sizes; None for those that one array can hold, or that hold something else than numbers."""
    try:
        rows = [np.asarray(value) for value in values]
    except ValueError:
        return None
    if len({row.shape for row in rows}) < 2 or any(row.dtype.kind not in "biuf" for row in rows):
        return None
    return objects(rows)


def _rows_at_once(columns: Mapping[str, Any]) -> int:
    """Rows of a request. What lists and texts take is seen when they are written."""
    row_bytes = sum(values.nbytes // len(values) for values in columns.values() if isinstance(values, np.ndarray))
    return min(CHUNK_ROWS, max(1, CHUNK_BYTES // max(1, row_bytes)))


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except (KeyError, ValueError) as error:
        raise UnavailableError(
            f"Answers to parts of the rows differ in outputs or shapes: {error}",
            remedy=f"Send at most {CHUNK_ROWS} rows at a time",
        ) from error
