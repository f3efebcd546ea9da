"""The Open Inference Protocol, version 2, in its JSON form: requests, responses and the bodies around them.

Tensors are rows first: axis 0 counts rows, and every tensor of a request has the same number of them. A `BYTES` tensor
is a numpy object array of Python `str`. What a client sends wrongly is a `RequestError`, what a model answers wrongly
an `ArtifactError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tidegate import tensors
from tidegate.errors import ClusterError, RequestError
from tidegate.signature import DATATYPES, Signature, TensorSpec, shown
from tidegate.tensors import Array

__all__ = [
    "DATATYPES",
    "InferRequest",
    "Signature",
    "TensorSpec",
    "encode_request",
    "encode_response",
    "error_body",
    "live_body",
    "metadata_body",
    "models_body",
    "parse_request",
    "parse_response",
    "ready_body",
    "server_body",
]

_REQUEST_KEYS = frozenset({"id", "parameters", "inputs", "outputs"})
_RESPONSE_KEYS = frozenset({"id", "parameters", "outputs", "model_name", "model_version"})
_TENSOR_KEYS = frozenset({"name", "shape", "datatype", "parameters", "data"})
_OUTPUT_KEYS = frozenset({"name", "parameters"})


@dataclass(frozen=True)
class InferRequest:
    """A request that fits the signature. `outputs` names what was asked for, in order; empty stands for all."""

    inputs: dict[str, Array]
    id: str | None
    outputs: tuple[str, ...]


def parse_request(body: bytes, signature: Signature, *, max_rows: int) -> InferRequest:
    """The request in `body`, its arrays C-contiguous in the signature's dtypes and shapes, 1 to `max_rows` rows each.

    FP32 and FP64 stand for each other, an integer datatype for any numeric one that holds its values exactly. Sizes
    after the rows may be flattened or differ in axes of size 1. Raises RequestError, never anything else.
    """
    document = _object(_loads(body), "The request body", _REQUEST_KEYS)
    specs = {spec.name: spec for spec in signature.inputs}
    inputs: dict[str, Array] = {}
    for item in _items(document, "inputs", _TENSOR_KEYS):
        name = _name(item, "input", specs)
        if name in inputs:
            raise RequestError(f'Input "{name}" is given twice', expected="each input once")
        inputs[name] = tensors.read_input(item, specs[name], max_rows)
    if len(inputs) < len(specs):
        missing = ", ".join(f'"{name}"' for name in specs if name not in inputs)
        raise RequestError(f"The request lacks {missing}", expected=f"the inputs {', '.join(specs)}")
    _same_rows(inputs)
    return InferRequest(inputs, _id(document), _requested(document, signature))


def encode_response(
    model_name: str,
    model_version: str | None,
    signature: Signature,
    outputs: Mapping[str, Array],
    request: InferRequest,
) -> bytes:
    """The response body. Raises ArtifactError for outputs that are missing, not finite or not as the signature says."""
    rows = len(next(iter(request.inputs.values())))
    wanted = request.outputs or tuple(spec.name for spec in signature.outputs)
    specs = {spec.name: spec for spec in signature.outputs}
    body: dict[str, Any] = {"model_name": model_name}
    if model_version is not None:
        body["model_version"] = model_version
    if request.id is not None:
        body["id"] = request.id
    body["outputs"] = [
        tensors.write(name, tensors.model_output(outputs.get(name), specs[name], rows)) for name in wanted
    ]
    try:
        return _dumps(body)
    except TypeError as error:
        raise tensors.bad_output(wanted, f"something JSON cannot hold ({error})") from error


def encode_request(inputs: Mapping[str, Any], signature: Signature | None = None, id: str | None = None) -> bytes:
    """The body that asks for all outputs of `inputs`: name -> array or list, rows first.

    Values are cast to the signature's datatypes where it knows the name and nothing but float precision is lost. Raises
    RequestError.
    """
    specs = {spec.name: spec for spec in signature.inputs} if signature else {}
    body: dict[str, Any] = {} if id is None else {"id": id}
    body["inputs"] = [
        tensors.write(name, tensors.client_column(name, values, specs.get(name))) for name, values in inputs.items()
    ]
    try:
        return _dumps(body)
    except TypeError as error:
        raise RequestError(f"The inputs cannot be written as JSON: {error}", expected="valid Unicode text") from error


def parse_response(body: bytes) -> dict[str, Array]:
    """The outputs of a response by name, in the shapes and datatypes it states. Raises ClusterError if it is none."""
    try:
        document = _object(_loads(body), "The response body", _RESPONSE_KEYS)
        return dict(_answer(item) for item in _items(document, "outputs", _TENSOR_KEYS))
    except RequestError as error:
        raise ClusterError(
            f"The server's answer is no inference response: {error.happened}",
            expected=error.expected,
            remedy="Check that the URL is that of an endpoint",
        ) from error


def error_body(message: str) -> bytes:
    return orjson.dumps({"error": message.encode("utf-8", "replace").decode()})


def live_body(live: bool = True) -> bytes:
    return orjson.dumps({"live": live})


def ready_body(ready: bool, name: str | None = None) -> bytes:
    """Readiness of the server or, with a name, of that model."""
    return orjson.dumps({"ready": ready} if name is None else {"name": name, "ready": ready})


def server_body(name: str, version: str, extensions: Sequence[str] = ()) -> bytes:
    return orjson.dumps({"name": name, "version": version, "extensions": list(extensions)})


def models_body(ready: Mapping[str, bool]) -> bytes:
    """The endpoints at `GET /v2/models` by name with their readiness. The protocol leaves this list to the server."""
    return orjson.dumps({"models": [{"name": name, "ready": ready[name]} for name in sorted(ready)]})


def metadata_body(name: str, versions: Sequence[str], signature: Signature, platform: str = "tidegate") -> bytes:
    return orjson.dumps({"name": name, "versions": list(versions), "platform": platform, **signature.to_json()})


def _loads(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            f"The body is not JSON: {error}" if body else "The body is empty",
            expected="one JSON object in UTF-8",
            remedy="JSON has no NaN, no Infinity and no binary tensors",
        ) from error


def _dumps(body: dict[str, Any]) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _object(value: object, where: str, keys: frozenset[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where} is {shown(value)}", expected="a JSON object")
    if not value.keys() <= keys:
        unknown = shown(next(key for key in value if key not in keys))
        raise RequestError(f"{where} has the unknown key {unknown}", expected=f"only {', '.join(sorted(keys))}")
    parameters = value.get("parameters")
    if parameters is not None:
        _check_parameters(parameters, where)
    return value


def _check_parameters(value: object, where: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(item, str | int | float) for item in value.values()):
        raise RequestError(
            f"The parameters of {where[0].lower() + where[1:]} are not usable",
            expected="an object whose values are strings, numbers or booleans",
        )


def _items(document: dict[str, Any], key: str, keys: frozenset[str]) -> list[dict[str, Any]]:
    items = document.get(key)
    if not isinstance(items, list) or not items:
        found = "an empty list" if items == [] else shown(items)
        raise RequestError(f'"{key}" is {found if key in document else "missing"}', expected="a list of objects")
    return [_object(item, f'An entry of "{key}"', keys) for item in items]


def _name(item: dict[str, Any], kind: str, known: Mapping[str, Any] | None = None) -> str:
    name = item.get("name")
    if not isinstance(name, str):
        raise RequestError(f"An {kind} has the name {shown(name)}", expected="a string")
    if known is not None and name not in known:
        raise RequestError(f"The model has no {kind} {shown(name)}", expected=f"one of {', '.join(known)}")
    return name


def _id(document: dict[str, Any]) -> str | None:
    value = document.get("id")
    if value is not None and not isinstance(value, str):
        raise RequestError(f'"id" is {shown(value)}', expected="a string")
    return value


def _requested(document: dict[str, Any], signature: Signature) -> tuple[str, ...]:
    known = {spec.name: spec for spec in signature.outputs}
    if document.get("outputs") is None or document["outputs"] == []:
        return tuple(known)
    names = tuple(_name(item, "output", known) for item in _items(document, "outputs", _OUTPUT_KEYS))
    if len(set(names)) < len(names):
        raise RequestError('"outputs" names an output twice', expected="each output once")
    return names


def _same_rows(inputs: dict[str, Array]) -> None:
    rows = {name: len(array) for name, array in inputs.items()}
    if len(set(rows.values())) > 1:
        found = ", ".join(f'"{name}" {count}' for name, count in rows.items())
        raise RequestError(f"The inputs differ in rows: {found}", expected="the same shape[0] in every input")


def _answer(item: dict[str, Any]) -> tuple[str, Array]:
    name = _name(item, "output")
    return name, tensors.read_output(item, f"Output {shown(name)}")
