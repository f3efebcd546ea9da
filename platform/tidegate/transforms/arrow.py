"""Arrow columns: what they hold, and lists of numbers in and out of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidegate.tensors import same_order
from tidegate.transforms.base import Array, problems


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def files(column: pa.Array) -> pa.Array:
    """The files of a column of structs that have them as `bytes`, as Hugging Face's datasets do; else the column."""
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_binary(kind.field("bytes").type):
        return pc.struct_field(column, "bytes")
    return column


def fixed_lists(values: Array) -> pa.Array:
    """`[rows, width]` -> an Arrow array of lists of fixed width, without a copy where the array is contiguous."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def flat_lists(column: pa.Array, shape: tuple[int, ...]) -> tuple[pa.Array, Array]:
    """Lists nested as `shape` says, axes of size 1 aside, as flat lists; and the problem of rows nested otherwise."""
    found = problems(len(column))
    if not (is_list(column.type) and is_list(column.type.value_type)):
        return column, found
    rows: list[list[object] | None] = []
    for row, item in enumerate(column.to_pylist()):
        given = shape if item is None else nested_shape(item)
        if not same_order(given, shape):
            sizes = "of different lengths" if 0 in given else " x ".join(map(str, given))
            found[row] = f"the nested lists are {sizes}, not {' x '.join(map(str, shape))}"
        rows.append(None if item is None or found[row] else _leaves(item))
    return pa.array(rows), found


def nested_shape(value: object) -> tuple[int, ...]:
    """The lengths of nested lists; 0 where they differ."""
    if not isinstance(value, list):
        return ()
    inner = {nested_shape(item) for item in value}
    return (len(value), *(inner.pop() if len(inner) == 1 else (0,) if inner else ()))


def _leaves(value: object) -> list[object]:
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]
