"""Inputs that come as a file's bytes, encoded images and sounds, or as samples of a sound with their rate.

They reach a model as object arrays `[rows]` of bytes or `Sound`; its transform decodes them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tidegate.errors import RequestError
from tidegate.signature import RATE, TensorSpec, shown

Array = np.ndarray[Any, np.dtype[Any]]

INT16_SCALE = 32768.0
RATES = range(1000, 384_001)


class Sound(NamedTuple):
    """Samples float32 `[samples]` from -1 to 1. A rate of 0 stands for the model's own."""

    samples: Array
    sampling_rate: int


def objects(values: Sequence[Any]) -> Array:
    """The values as an object array `[rows]`, whatever they are."""
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        array[row] = value
    return array


def holds_bytes(array: Array) -> bool:
    """Whether an array holds encoded content, and not texts."""
    return array.dtype == object and array.ndim == 1 and all(isinstance(value, bytes) for value in array)


def decoded(values: Sequence[str | bytes], where: str) -> Array:
    """Bytes of strings in base64, as JSON has them; bytes stay as they are. Raises RequestError."""
    found: list[bytes] = []
    for place, value in enumerate(values):
        try:
            found.append(value if isinstance(value, bytes) else base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            raise RequestError(
                f"{where} holds a string at position {place} that is no base64", expected="a file's bytes in base64"
            ) from None
    return objects(found)


def written(array: Array) -> list[str]:
    """Encoded content as JSON has it."""
    return [base64.b64encode(value).decode() for value in array.tolist()]


def sounds(values: Array, parameters: Mapping[str, Any] | None, where: str) -> Array:
    """Samples `[rows, samples]`, floats from -1 to 1 or INT16, with their rate. Raises RequestError."""
    if values.dtype == np.int16:
        values = values / INT16_SCALE
    elif values.dtype.kind != "f":
        raise RequestError(
            f"{where} holds samples of {values.dtype.name}", expected="FP32 from -1 to 1, INT16, or BYTES of a file"
        )
    parameters = parameters or {}
    if strange := [name for name in parameters if "rate" in name.lower() and name != RATE]:
        raise RequestError(f"{where} has the parameter {shown(strange[0])}", expected=f"the samples' rate as {RATE}")
    rate = parameters.get(RATE, 0)
    if type(rate) is not int or (RATE in parameters and rate not in RATES):
        raise RequestError(
            f"The {RATE} of {where} is {shown(rate)}", expected=f"samples a second, {RATES[0]} to {RATES[-1]}"
        )
    return objects([Sound(row.astype(np.float32), rate) for row in values])


def is_content(datatype: str, spec: TensorSpec) -> bool:
    """Whether an input of that datatype is content that is still to be decoded."""
    return bool(spec.content) and (datatype == "BYTES" or spec.content == "audio")
