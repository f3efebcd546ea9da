"""Arrow columns: what they hold, and lists of numbers in and out of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidegate.transforms.base import Array


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


def flat_lists(column: pa.Array) -> pa.Array:
    """Lists of lists of numbers as lists of numbers. Rows that are not rectangular show by their count."""
    if not (is_list(column.type) and is_list(column.type.value_type)):
        return column
    return pa.array(
        [None if row is None else np.asarray(_leaves(row), dtype=object).tolist() for row in column.to_pylist()]
    )


def _leaves(value: object) -> list[object]:
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]
