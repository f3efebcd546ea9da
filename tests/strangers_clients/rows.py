"""The datatypes that both clients try, and rows of each."""

import numpy as np

# What torch computes with: it has no unsigned integers but the smallest.
DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


def values(datatype: str) -> np.ndarray:
    """Rows that touch both ends of the datatype."""
    dtype = np.dtype(DTYPES[datatype])
    if dtype.kind == "b":
        return np.array([[True, False, True], [False, False, True]])
    if dtype.kind == "f":
        return np.array([[0.5, -1.25, 3.0], [0.0, 1e-3, 6e4]], dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return np.array([[low, 0, high], [1, 2, 3]], dtype)
