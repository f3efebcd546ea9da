"""Inference requests and responses in the messages of the gRPC service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidegate import binary, tensors
from tidegate.errors import RequestError
from tidegate.protocol import InferRequest, check_inputs, check_known, checked_outputs, refuse_foreign
from tidegate.serving.grpc_messages import message
from tidegate.signature import Signature, TensorSpec, shown
from tidegate.tensors import Array

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Triton's enumeration: its TYPE_STRING is the protocol's BYTES.
_DATA_TYPES = {
    name: number
    for number, name in enumerate(
        (
            "BOOL",
            "UINT8",
            "UINT16",
            "UINT32",
            "UINT64",
            "INT8",
            "INT16",
            "INT32",
            "INT64",
            "FP16",
            "FP32",
            "FP64",
            "BYTES",
        ),
        start=1,
    )
}


def parse_request(request: Any, signature: Signature, *, max_rows: int) -> InferRequest:
    """A ModelInferRequest that fits the signature. Outputs are bytes where inputs were. Raises RequestError."""
    raws = list(request.raw_input_contents)
    if raws and len(raws) != len(request.inputs):
        raise RequestError(
            f"raw_input_contents has {len(raws)} entries", expected=f"one for each of the {len(request.inputs)} inputs"
        )
    specs = {spec.name: spec for spec in signature.inputs}
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(request.inputs):
        check_known(tensor.name, "input", specs)
        if tensor.name in inputs:
            raise RequestError(f'Input "{tensor.name}" is given twice', expected="each input once")
        refuse_foreign(tensor.parameters, f'Input "{tensor.name}"')
        inputs[tensor.name] = _input(tensor, specs[tensor.name], max_rows, raws[index] if raws else None)
    check_inputs(inputs, signature)
    names = _requested(request, signature)
    return InferRequest(inputs, request.id or None, names, frozenset(names if raws else ()))


def _input(tensor: Any, spec: TensorSpec, max_rows: int, raw: bytes | None) -> Array:
    where = f'Input "{tensor.name}"'
    item: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if spec.content:
        item["parameters"] = {name: _value(value) for name, value in tensor.parameters.items()}
    given = [field.name for field, _ in tensor.contents.ListFields()]
    if raw is not None:
        if given:
            raise RequestError(f"{where} has contents beside raw_input_contents", expected="one of them")
        return tensors.read_input(item, spec, max_rows, raw)
    wanted = _CONTENTS.get(tensor.datatype, "raw_input_contents")
    if given not in ([], [wanted]):
        raise RequestError(f"{where} of {shown(tensor.datatype)} has {' and '.join(given)}", expected=wanted)
    values = list(getattr(tensor.contents, wanted, ()))
    is_text = tensor.datatype == "BYTES" and not spec.content
    item["data"] = [_text(value, where) for value in values] if is_text else values
    return tensors.read_input(item, spec, max_rows)


def _value(parameter: Any) -> Any:
    """What an InferParameter holds."""
    chosen = parameter.ListFields()
    return chosen[0][1] if chosen else None


def _text(value: bytes, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{where} holds bytes that are no UTF-8", expected="text") from error


def _requested(request: Any, signature: Signature) -> tuple[str, ...]:
    known = tuple(spec.name for spec in signature.outputs)
    names = tuple(output.name for output in request.outputs)
    for output in request.outputs:
        check_known(output.name, "output", known)
        refuse_foreign(output.parameters, f'Output "{output.name}"')
    if len(set(names)) < len(names):
        raise RequestError("An output is named twice", expected="each output once")
    return names or known


def encode_response(
    name: str, version: str, signature: Signature, outputs: Mapping[str, Array], request: InferRequest
) -> Any:
    """A ModelInferResponse. Raises ArtifactError for what the model answered wrongly."""
    response = message("ModelInferResponse")(model_name=name, model_version=version, id=request.id or "")
    answers = checked_outputs(outputs, signature, request)
    # Half floats have no field of their own, and bytes are for all outputs or for none.
    as_bytes = bool(request.binary) or any(array.dtype.str.endswith("f2") for array in answers.values())
    for output, array in answers.items():
        datatype = tensors.datatype_of(array)
        tensor = response.outputs.add(name=output, datatype=datatype, shape=array.shape)
        try:
            if as_bytes:
                response.raw_output_contents.append(binary.write(array))
            else:
                values = array.reshape(-1).tolist()
                contents = [text.encode() for text in values] if datatype == "BYTES" else values
                getattr(tensor.contents, _CONTENTS[datatype]).extend(contents)
        except UnicodeEncodeError as error:
            raise tensors.bad_output([output], f"text that cannot be sent ({error})") from error
    return response


def metadata(name: str, version: str, signature: Signature) -> Any:
    """A ModelMetadataResponse."""
    response = message("ModelMetadataResponse")(name=name, versions=[version], platform="tidegate")
    for mine, specs in ((response.inputs, signature.inputs), (response.outputs, signature.outputs)):
        for spec in specs:
            mine.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return response


def config(name: str, signature: Signature, max_rows: int) -> Any:
    """A ModelConfigResponse."""
    response = message("ModelConfigResponse")()
    told = response.config
    told.name, told.platform, told.backend, told.max_batch_size = name, "tidegate", "tidegate", max_rows
    for mine, specs in ((told.input, signature.inputs), (told.output, signature.outputs)):
        for spec in specs:
            mine.add(name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=spec.shape[1:] or (1,))
    return response
