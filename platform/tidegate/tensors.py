"""Tensors of requests and responses to numpy arrays and back.

`item` is one entry of a request's `inputs` or a response's `outputs`, `raw` its bytes where they travel in the binary
form; `where` names it in messages. What does not fit is a `RequestError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from tidegate import binary, content
from tidegate.errors import ArtifactError, RequestError
from tidegate.signature import DATATYPES, MAX_AXES, TensorSpec, shown

Array = np.ndarray[Any, np.dtype[Any]]

_DATATYPE_OF = {dtype: datatype for datatype, dtype in DATATYPES.items()}
_JSON_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}
_ONLY_BINARY = ("FP16", binary.BF16)
_READABLE = frozenset({*DATATYPES, binary.BF16})
_JSON_WORDS = {"b": "true or false", "i": "integers", "u": "integers", "f": "finite numbers", "O": "strings"}


def read_input(item: dict[str, Any], spec: TensorSpec, max_rows: int, raw: binary.Buffer | None = None) -> Array:
    """An input of a request, in the datatype and shape of the signature."""
    where = f'Input "{spec.name}"'
    datatype = _datatype(item, where, is_binary=raw is not None)
    if content.is_content(datatype, spec):
        return _content(item, datatype, max_rows, where, raw)
    if not _stands_for(datatype, spec.datatype):
        raise RequestError(f"{where} has the datatype {datatype}", expected=_accepted(spec.datatype))
    shape = _bounded(_shape(item, where), max_rows, where)
    target = _model_shape(shape, spec, where)
    return _cast(_given(item, datatype, shape, where, raw), spec.datatype, where).reshape(target)


def _bounded(shape: tuple[int, ...], max_rows: int, where: str) -> tuple[int, ...]:
    if shape[0] > max_rows:
        raise RequestError(
            f"{where} has {shape[0]} rows", expected=f"at most {max_rows}", remedy="Send several requests"
        )
    return shape


def _content(item: dict[str, Any], datatype: str, max_rows: int, where: str, raw: binary.Buffer | None) -> Array:
    """What a transform is to decode: an object array `[rows]` of bytes or of sounds."""
    shape = _bounded(_shape(item, where), max_rows, where)
    if datatype != "BYTES":
        if len(shape) != 2:
            raise RequestError(f"{where} has the shape {list(shape)}", expected="[rows, samples]")
        return content.sounds(_given(item, datatype, shape, where, raw).reshape(shape), item.get("parameters"), where)
    if math.prod(shape) != shape[0]:
        raise RequestError(f"{where} has the shape {list(shape)}", expected="[rows] of BYTES, a file each")
    if raw is not None:
        return content.objects(binary.read_elements(raw, shape[0], where))
    values = _flat(item, shape, where)
    if not all(isinstance(value, str | bytes) for value in values):
        raise RequestError(f"{where} holds something else than strings", expected="a file's bytes in base64")
    return content.decoded(values, where)


def read_output(item: dict[str, Any], where: str, raw: binary.Buffer | None = None) -> Array:
    """An output of a response, in the datatype and shape it states."""
    datatype, shape = _datatype(item, where, is_binary=raw is not None), _shape(item, where)
    return _given(item, datatype, shape, where, raw).reshape(shape)


def _given(item: dict[str, Any], datatype: str, shape: tuple[int, ...], where: str, raw: binary.Buffer | None) -> Array:
    if raw is None:
        return _values(_flat(item, shape, where), datatype, where)
    values = binary.read(raw, datatype, shape, where)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _out_of_range(where, datatype)
    return values


def _datatype(item: dict[str, Any], where: str, *, is_binary: bool) -> str:
    datatype = item.get("datatype")
    if datatype in _ONLY_BINARY and not is_binary:
        raise RequestError(f"{where} is {datatype}, which has no JSON form", remedy="Send it as FP32, or as bytes")
    if not isinstance(datatype, str) or datatype not in _READABLE:
        raise RequestError(f"{where} has the datatype {shown(datatype)}", expected=f"one of {', '.join(DATATYPES)}")
    return datatype


def _stands_for(given: str, wanted: str) -> bool:
    if given == wanted:
        return True
    kind, have = DATATYPES[wanted].kind, DATATYPES["FP32" if given == binary.BF16 else given].kind
    return (have in "iu" and kind in "iuf") or have == kind == "f"


def _accepted(wanted: str) -> str:
    kind = DATATYPES[wanted].kind
    if kind == "f":
        return "FP32 or FP64, or an integer datatype whose values it holds exactly"
    return f"{wanted}, or another integer datatype with values in its range" if kind in "iu" else wanted


def _shape(item: dict[str, Any], where: str) -> tuple[int, ...]:
    shape = item.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_AXES:
        found = shown(shape) if not isinstance(shape, list) else f"of {len(shape)} axes"
        raise RequestError(f"The shape of {where} is {found}", expected=f"a list of 1 to {MAX_AXES} integers")
    for size in shape:
        if type(size) is not int or size < 1:
            raise RequestError(f"The shape of {where} holds {shown(size)}", expected="integers of at least 1")
    return tuple(shape)


def _model_shape(shape: tuple[int, ...], spec: TensorSpec, where: str) -> tuple[int, ...]:
    given, wanted = shape[1:], spec.shape[1:]
    if given == wanted or (
        len(given) == len(wanted) and all(have == want or want == -1 for have, want in zip(given, wanted, strict=True))
    ):
        return shape
    if -1 not in wanted and math.prod(given) == math.prod(wanted) and same_order(given, wanted):
        return (shape[0], *wanted)
    raise RequestError(
        f"{where} has the shape {list(shape)}",
        expected=f"{list(spec.shape)}, the first being rows and -1 any size",
    )


def same_order(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether row-major values mean the same in both: one is flat, or they differ in axes of size 1 alone.

    Equal counts don't do: [28, 28, 3] for [3, 28, 28] would be read as a wrong picture without a word.
    """
    return min(len(given), len(wanted)) <= 1 or [n for n in given if n > 1] == [n for n in wanted if n > 1]


def _flat(item: dict[str, Any], shape: tuple[int, ...], where: str) -> list[Any]:
    data = item.get("data")
    if not isinstance(data, list):
        remedy = (
            "" if "data" in item else "Give data, or binary_data_size and the header Inference-Header-Content-Length"
        )
        raise RequestError(f"The data of {where} is {shown(data)}", expected="a list", remedy=remedy)
    if data and type(data[0]) is list:
        return _unnested(data, shape, where)
    if len(data) != math.prod(shape):
        raise RequestError(f"{where} has {len(data)} values", expected=f"as many as the shape {list(shape)} says")
    return data


def _unnested(data: list[Any], shape: tuple[int, ...], where: str) -> list[Any]:
    fits = len(data) == shape[0]
    for size in shape[1:]:
        if not fits or not all(type(part) is list and len(part) == size for part in data):
            fits = False
            break
        data = list(chain.from_iterable(data))
    if not fits:
        raise RequestError(
            f"The nested lists of {where} are not of the shape {list(shape)}",
            expected="lists nested as the shape says, or one flat list in row-major order",
        )
    return data


def _values(flat: list[Any], datatype: str, where: str) -> Array:
    dtype = DATATYPES[datatype]
    if not _JSON_TYPES[dtype.kind].issuperset(map(type, flat)):
        wrong = next(i for i, value in enumerate(flat) if type(value) not in _JSON_TYPES[dtype.kind])
        raise RequestError(
            f"{where} holds {shown(flat[wrong])} at position {wrong}",
            expected=f"{_JSON_WORDS[dtype.kind]} for {datatype}",
        )
    try:
        with np.errstate(over="ignore"):
            values: Array = np.array(flat, dtype=dtype)
    except OverflowError as error:
        raise _out_of_range(where, datatype) from error
    if dtype.kind == "f" and not np.isfinite(values).all():
        raise _out_of_range(where, datatype)
    return values


def _cast(values: Array, datatype: str, where: str) -> Array:
    if values.dtype == DATATYPES[datatype]:
        return values
    with np.errstate(over="ignore"):
        cast: Array = values.astype(DATATYPES[datatype])
    # Python compares integers with floats exactly; numpy would round both to float64 first.
    exact = np.isfinite(cast).all() if values.dtype.kind == "f" else cast.tolist() == values.tolist()
    if not exact:
        raise _out_of_range(where, datatype)
    return cast


def _out_of_range(where: str, datatype: str) -> RequestError:
    return RequestError(
        f"{where} holds a number that {datatype} cannot", expected=f"finite values that {datatype} holds"
    )


def write(name: str, array: Array) -> dict[str, Any]:
    """One tensor as orjson takes it: numbers as a flat array, text as a list. Raises RequestError for FP16."""
    if array.dtype == np.float16:
        raise RequestError(f'"{name}" is FP16, which has no JSON form', remedy="Ask for it, or send it, as bytes")
    flat = np.ascontiguousarray(array).reshape(-1)
    data: Any = flat.tolist() if flat.dtype.kind == "O" else flat
    if content.holds_bytes(flat):
        data = content.written(flat)
    return {**described(name, array), "data": data}


def described(name: str, array: Array) -> dict[str, Any]:
    """One tensor without its values."""
    return {"name": name, "shape": list(array.shape), "datatype": datatype_of(array)}


def datatype_of(array: Array) -> str:
    return _DATATYPE_OF[array.dtype]


def model_output(array: Array | None, spec: TensorSpec, rows: int) -> Array:
    """A model's answer, checked, in the datatype of the signature.

    Raises ArtifactError; RequestError for numbers that are not finite, for a version that answers such to its example
    is not served: it is these inputs that it has no answer to.
    """
    if array is None:
        raise bad_output([spec.name], "nothing")
    wanted = (rows, *spec.shape[1:])
    if array.shape != wanted and not _fits(array.shape, wanted):
        raise bad_output([spec.name], f"the shape {list(array.shape)} where {list(wanted)} belongs")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(
            f'The model\'s answer "{spec.name}" to these inputs is not finite',
            expected="inputs of the size that it was trained on",
        )
    try:
        return _as_datatype(array, spec.datatype, "The output")
    except RequestError as error:
        raise bad_output([spec.name], f"what {spec.datatype} cannot hold ({error.happened})") from error


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (have, -1) for want, have in zip(wanted, shape, strict=True))


def bad_output(names: Sequence[str], what: str) -> ArtifactError:
    return ArtifactError(
        f"The model answered {what} for {', '.join(names)}",
        expected="finite values of the signature's datatype and shape",
        remedy="Deploy another version",
    )


def client_column(name: str, values: Any, spec: TensorSpec | None) -> Array:
    """What a caller passes for an input, as an array of the signature's datatype or of its own."""
    where = f'Input "{name}"'
    try:
        array = np.asarray(values)
        if array.dtype.kind in "USO":
            array = np.array(values, dtype=object)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"{where} is no array: {error}", expected="rows of equal shape") from error
    if array.ndim == 0:
        raise RequestError(f"{where} is a single value", expected="a list or array with one entry a row")
    if content.holds_bytes(array) and (spec is None or spec.content):
        return array
    # Samples of a sound stay as they are; what they become is the model's.
    is_sound = spec is not None and spec.content == "audio" and array.dtype != object
    return _as_datatype(array, spec.datatype if spec and not is_sound else None, where)


def _unusual(array: Array, where: str) -> RequestError:
    """What to say of an array that has no datatype, or of objects that are not all texts."""
    gaps = [row for row, value in enumerate(array) if value is None] if array.dtype == object else []
    if not gaps:
        return RequestError(
            f"{where} holds values of {array.dtype}", expected="numbers, booleans or strings, not mixed"
        )
    more = f" and {len(gaps) - 1} more" if gaps[1:] else ""
    return RequestError(
        f"{where} has no value in row {gaps[0]}{more}", expected="a value in each row", remedy="Fill or drop those rows"
    )


def _as_datatype(array: Array, wanted: str | None, where: str) -> Array:
    """The array in that datatype, or in the one its dtype stands for, checked for what JSON cannot carry."""
    given = _DATATYPE_OF.get(array.dtype) or _DATATYPE_OF.get(array.dtype.newbyteorder("="))
    if given is None or (given == "BYTES" and not all(isinstance(value, str) for value in array.flat)):
        raise _unusual(array, where)
    wanted = wanted or given
    if not _stands_for(given, wanted):
        raise RequestError(f"{where} holds {given}", expected=_accepted(wanted))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(f"{where} holds NaN or infinity", expected="finite numbers")
    return _cast(array, wanted, where)
