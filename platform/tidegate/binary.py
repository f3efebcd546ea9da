"""Tensors in the protocol's binary form to numpy arrays and back: little-endian, row by row.

A `BYTES` tensor is a run of elements, each a 4-byte length and that many bytes. BF16 (Triton's addition) is read as
FP32, which holds all of its values. What does not fit is a `RequestError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tidegate.errors import RequestError
from tidegate.signature import DATATYPES

Array = np.ndarray[Any, np.dtype[Any]]
Buffer = bytes | bytearray | memoryview

BF16 = "BF16"
_LENGTH_BYTES = 4


def read(data: Buffer, datatype: str, shape: Sequence[int], where: str) -> Array:
    """The tensor in `data`, all of it, in the shape and the datatype's dtype (FP32 for BF16)."""
    count = math.prod(shape)
    if datatype == "BYTES":
        return _read_texts(data, count, where).reshape(shape)
    itemsize = 2 if datatype == BF16 else DATATYPES[datatype].itemsize
    if len(data) != count * itemsize:
        raise RequestError(
            f"{where} has {len(data)} bytes", expected=f"{count * itemsize} for the shape {list(shape)} of {datatype}"
        )
    if datatype == BF16:
        # The upper half of a float32.
        halves: Array = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return halves.view(np.float32).reshape(shape)
    if datatype == "BOOL":
        return np.asarray(np.frombuffer(data, np.uint8) != 0).reshape(shape)
    # A copy: it is aligned and may be written to, which torch asks for, and lets go of the request's body.
    values: Array = np.frombuffer(data, DATATYPES[datatype].newbyteorder("<")).astype(DATATYPES[datatype])
    return values.reshape(shape)


def write(array: Array) -> bytes:
    """The array's binary form. Objects are texts or bytes."""
    if array.dtype.kind == "O":
        return b"".join(map(_element, array.reshape(-1).tolist()))
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _element(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


def _read_texts(data: Buffer, count: int, where: str) -> Array:
    texts = np.empty(count, dtype=object)
    for index, element in enumerate(_elements(data, count, where)):
        texts[index] = _text(element, where, index)
    return texts


def read_elements(data: Buffer, count: int, where: str) -> list[bytes]:
    """The elements of a `BYTES` tensor as they are."""
    return [bytes(element) for element in _elements(data, count, where)]


def _elements(data: Buffer, count: int, where: str) -> Iterator[memoryview]:
    view = memoryview(data)
    # Each element takes at least its length: a count beyond that need not be tried.
    if count * _LENGTH_BYTES > len(view):
        raise _cut_off(where, count)
    place = 0
    for _ in range(count):
        start = place + _LENGTH_BYTES
        place = start + int.from_bytes(view[place:start], "little")
        if start > len(view) or place > len(view):
            raise _cut_off(where, count)
        yield view[start:place]
    if place != len(view):
        raise RequestError(f"{where} has {len(view) - place} bytes after its last element", expected="none")


def _cut_off(where: str, count: int) -> RequestError:
    return RequestError(
        f"{where} ends before its {count} elements do", expected="4 bytes of length and so many bytes for each"
    )


def _text(data: memoryview, where: str, index: int) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{where} holds bytes at position {index} that are no UTF-8", expected="text") from error
