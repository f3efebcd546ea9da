"""The Open Inference Protocol, version 2, over HTTP: requests, responses and the bodies around them.

Tensors are rows first: axis 0 counts rows, and every tensor of a request has the same number of them. A `BYTES` tensor
is a numpy object array of Python `str`. What a client sends wrongly is a `RequestError`, what a model answers wrongly
an `ArtifactError`.

A body is JSON, or JSON followed by the bytes of tensors whose entries have the parameter `binary_data_size` in place of
`data` (the binary tensor data extension); the header `HEADER_LENGTH` then has the length of the JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from tidegate import binary, tensors
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

HEADER_LENGTH = "inference-header-content-length"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")

_SIZE = "binary_data_size"
# KServe's client says in the body, too, which model it asks; the path decides.
_REQUEST_KEYS = frozenset({"id", "parameters", "inputs", "outputs", "model_name", "model_version"})
_RESPONSE_KEYS = frozenset({"id", "parameters", "outputs", "model_name", "model_version"})
_TENSOR_KEYS = frozenset({"name", "shape", "datatype", "parameters", "data"})
_OUTPUT_KEYS = frozenset({"name", "parameters"})


@dataclass(frozen=True)
class InferRequest:
    """A request that fits the signature. `outputs` names what was asked for, in order; empty stands for all.

    Those in `binary` travel back as bytes.
    """

    inputs: dict[str, Array]
    id: str | None
    outputs: tuple[str, ...]
    binary: frozenset[str] = frozenset()


class Body(NamedTuple):
    """What goes over the wire. `header_length` is None for a body of JSON alone."""

    content: bytes
    header_length: int | None = None


def parse_request(
    body: bytes, signature: Signature, *, max_rows: int, header_length: int | None = None
) -> InferRequest:
    """The request in `body`, its arrays C-contiguous in the signature's dtypes and shapes, 1 to `max_rows` rows each.

    FP32 and FP64 stand for each other, an integer datatype for any numeric one that holds its values exactly. Sizes
    after the rows may be flattened or differ in axes of size 1. Raises RequestError, never anything else.
    """
    text, tail = _parted(body, header_length)
    document = _object(_loads(text), "The request body", _REQUEST_KEYS)
    specs = {spec.name: spec for spec in signature.inputs}
    inputs: dict[str, Array] = {}
    for item in _items(document, "inputs", _TENSOR_KEYS):
        name = _name(item, "input", specs)
        if name in inputs:
            raise RequestError(f'Input "{name}" is given twice', expected="each input once")
        inputs[name] = tensors.read_input(item, specs[name], max_rows, tail.take(item, f'Input "{name}"'))
    tail.check_all_taken()
    check_inputs(inputs, signature)
    asked = _requested(document, signature)
    return InferRequest(inputs, _id(document), tuple(asked), frozenset(name for name, flag in asked.items() if flag))


def check_inputs(inputs: Mapping[str, Array], signature: Signature) -> None:
    """Raises RequestError unless every input of the signature is there, with the same number of rows."""
    missing = [f'"{spec.name}"' for spec in signature.inputs if spec.name not in inputs]
    if missing:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise RequestError(f"The request lacks {', '.join(missing)}", expected=f"the inputs {names}")
    rows = {name: len(array) for name, array in inputs.items()}
    if len(set(rows.values())) > 1:
        found = ", ".join(f'"{name}" {count}' for name, count in rows.items())
        raise RequestError(f"The inputs differ in rows: {found}", expected="the same shape[0] in every input")


def encode_response(
    model_name: str,
    model_version: str | None,
    signature: Signature,
    outputs: Mapping[str, Array],
    request: InferRequest,
) -> Body:
    """The response. Raises ArtifactError for outputs that are missing or not as the signature says.

    RequestError where the model has no finite answer to these inputs.
    """
    answers = checked_outputs(outputs, signature, request)
    document: dict[str, Any] = {"model_name": model_name}
    if model_version is not None:
        document["model_version"] = model_version
    if request.id is not None:
        document["id"] = request.id
    try:
        tail = [binary.write(array) if name in request.binary else None for name, array in answers.items()]
        document["outputs"] = [
            tensors.write(name, array) if data is None else _with_size(tensors.described(name, array), data)
            for (name, array), data in zip(answers.items(), tail, strict=True)
        ]
        text = _dumps(document)
    except (TypeError, UnicodeEncodeError) as error:
        raise tensors.bad_output(list(answers), f"something the protocol cannot hold ({error})") from error
    return Body(b"".join([text, *filter(None, tail)]), len(text)) if request.binary else Body(text)


def checked_outputs(outputs: Mapping[str, Array], signature: Signature, request: InferRequest) -> dict[str, Array]:
    """What was asked for, in order, in the signature's datatypes and shapes. Raises ArtifactError, RequestError."""
    rows = len(next(iter(request.inputs.values())))
    specs = {spec.name: spec for spec in signature.outputs}
    return {
        name: tensors.model_output(outputs.get(name), specs[name], rows) for name in request.outputs or tuple(specs)
    }


def encode_request(
    inputs: Mapping[str, Any], signature: Signature | None = None, id: str | None = None, *, as_json: bool = True
) -> Body:
    """The body that asks for all outputs of `inputs`: name -> array or list, rows first.

    Values are cast to the signature's datatypes where it knows the name and nothing but float precision is lost. With
    `as_json=False` tensors travel as bytes, there and back. Raises RequestError.
    """
    specs = {spec.name: spec for spec in signature.inputs} if signature else {}
    columns = {name: tensors.client_column(name, values, specs.get(name)) for name, values in inputs.items()}
    document: dict[str, Any] = {} if id is None else {"id": id}
    if as_json:
        document["inputs"] = [tensors.write(name, array) for name, array in columns.items()]
        return Body(_written(document))
    try:
        tail = [binary.write(array) for array in columns.values()]
    except UnicodeEncodeError as error:
        raise RequestError(f"The inputs cannot be written: {error}", expected="valid Unicode text") from error
    document["parameters"] = {"binary_data_output": True}
    document["inputs"] = [
        _with_size(tensors.described(name, array), data)
        for (name, array), data in zip(columns.items(), tail, strict=True)
    ]
    text = _written(document)
    return Body(b"".join([text, *tail]), len(text))


def parse_response(body: bytes, header_length: int | None = None) -> dict[str, Array]:
    """The outputs of a response by name, in the shapes and datatypes it states. Raises ClusterError if it is none."""
    try:
        text, tail = _parted(body, header_length)
        document = _object(_loads(text), "The response body", _RESPONSE_KEYS)
        outputs = dict(_answer(item, tail) for item in _items(document, "outputs", _TENSOR_KEYS))
        tail.check_all_taken()
    except RequestError as error:
        raise ClusterError(
            f"The server's answer is no inference response: {error.happened}",
            expected=error.expected,
            remedy="Check that the URL is that of an endpoint",
        ) from error
    return outputs


class _Tail:
    """The bytes after the JSON of a body, handed out in the order of the tensors."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, item: Mapping[str, Any], where: str) -> memoryview | None:
        """The bytes of one tensor; None when its values are in the JSON."""
        parameters = item.get("parameters")
        refuse_foreign(parameters, where)
        if parameters is None or _SIZE not in parameters:
            return None
        size = parameters[_SIZE]
        if type(size) is not int or not 0 <= size <= len(self._data):
            raise RequestError(
                f"{where} has the {_SIZE} {shown(size)}",
                expected=f"an integer up to the {len(self._data)} bytes that are left after the JSON",
                remedy="Send the header Inference-Header-Content-Length with the length of the JSON",
            )
        if "data" in item:
            raise RequestError(f"{where} has data and {_SIZE}", expected="one of them")
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def check_all_taken(self) -> None:
        if len(self._data):
            raise RequestError(
                f"{len(self._data)} bytes follow the JSON that belong to no tensor",
                expected=f"{_SIZE} of each tensor that has bytes",
            )


def _parted(body: bytes, header_length: int | None) -> tuple[bytes | memoryview, _Tail]:
    if header_length is None:
        return body, _Tail(memoryview(b""))
    if not 0 <= header_length <= len(body):
        raise RequestError(
            f"Inference-Header-Content-Length is {header_length}", expected=f"at most the body's {len(body)} bytes"
        )
    view = memoryview(body)
    return view[:header_length], _Tail(view[header_length:])


def _with_size(entry: dict[str, Any], data: bytes) -> dict[str, Any]:
    return {**entry, "parameters": {_SIZE: len(data)}}


def _written(document: dict[str, Any]) -> bytes:
    try:
        return _dumps(document)
    except TypeError as error:
        raise RequestError(f"The inputs cannot be written as JSON: {error}", expected="valid Unicode text") from error


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


def config_body(name: str, signature: Signature, max_rows: int) -> bytes:
    """What clients of Triton ask for to know whether and how a model takes batches."""
    config = {
        "name": name,
        "platform": "tidegate",
        "backend": "tidegate",
        "max_batch_size": max_rows,
        "input": [_config_entry(spec) for spec in signature.inputs],
        "output": [_config_entry(spec) for spec in signature.outputs],
        "dynamic_batching": {},
    }
    return orjson.dumps(config)


def _config_entry(spec: TensorSpec) -> dict[str, Any]:
    name = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{name}", "dims": list(spec.shape[1:]) or [1]}


def _loads(body: bytes | memoryview) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            f"The body is not JSON: {error}" if body else "The body is empty",
            expected="one JSON object in UTF-8",
            remedy="JSON has no NaN and no Infinity; bytes after it need the header Inference-Header-Content-Length",
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
    if known is not None:
        check_known(name, kind, known)
    return name


def check_known(name: str, kind: str, known: Collection[str]) -> None:
    """Raises RequestError for a tensor that the model does not have. `kind`: input or output."""
    if name not in known:
        raise RequestError(f"The model has no {kind} {shown(name)}", expected=f"one of {', '.join(known)}")


def _id(document: dict[str, Any]) -> str | None:
    value = document.get("id")
    if value is not None and not isinstance(value, str):
        raise RequestError(f'"id" is {shown(value)}', expected="a string")
    return value


def _requested(document: dict[str, Any], signature: Signature) -> dict[str, bool]:
    """The outputs to answer, in order, and whether as bytes."""
    as_bytes = _flag(document.get("parameters"), "binary_data_output", False)
    known = {spec.name: spec for spec in signature.outputs}
    if document.get("outputs") is None or document["outputs"] == []:
        return dict.fromkeys(known, as_bytes)
    asked: dict[str, bool] = {}
    for item in _items(document, "outputs", _OUTPUT_KEYS):
        name = _name(item, "output", known)
        if name in asked:
            raise RequestError('"outputs" names an output twice', expected="each output once")
        parameters = item.get("parameters")
        refuse_foreign(parameters, f'Output "{name}"')
        asked[name] = _flag(parameters, "binary_data", as_bytes)
    return asked


def refuse_foreign(parameters: Mapping[str, Any] | None, where: str) -> None:
    """Refuses what would change the answer and is not done here: a classification, or a region of shared memory."""
    for name in ("classification", "shared_memory_region"):
        if parameters is not None and name in parameters:
            raise RequestError(f"{where} asks for {name}, which this server does not have", expected="plain tensors")


def _flag(parameters: Mapping[str, Any] | None, name: str, default: bool) -> bool:
    value = default if parameters is None else parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"The parameter {name} is {shown(value)}", expected="true or false")
    return value


def _answer(item: dict[str, Any], tail: _Tail) -> tuple[str, Array]:
    name = _name(item, "output")
    where = f"Output {shown(name)}"
    return name, tensors.read_output(item, where, tail.take(item, where))
