"""An example for a model: from what a person has at hand to named arrays `[rows, ...]`."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tidegate import tables
from tidegate.errors import SpecError
from tidegate.transforms.base import Array

MOST_ROWS = 64
"""More rows than these tell nothing new."""
ENDINGS = (".npz", ".json", *tables.ENDINGS)
_KINDS = "an array, a mapping of arrays, a DataFrame, or a file of one"


def arrays(given: object, inputs: str | Sequence[str] | None, default: str) -> dict[str, Array]:
    """The first rows of `given`, by input.

    `inputs` names the columns to take; a single name makes one input of everything, columns side by side. Without it
    each column is an input, and an array without a name is called `default`. Raises SpecError, and DataError for a
    file that cannot be read.
    """
    columns = _columns(_read(Path(given)) if isinstance(given, str | Path) else given, default)
    if isinstance(inputs, str):
        columns = {inputs: _joined(columns)}
    elif inputs is not None:
        columns = _chosen(columns, inputs)
    rows = {name: len(array) for name, array in columns.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise SpecError(f"the example has {rows or 'no'} rows", expected="a few rows, equally many in each input")
    return {name: np.ascontiguousarray(array[:MOST_ROWS]) for name, array in columns.items()}


def _columns(given: Any, default: str) -> dict[str, Array]:
    if type(given).__module__.partition(".")[0] == "pandas":
        given = pa.Table.from_pandas(given, preserve_index=False)
    if isinstance(given, pa.Table):
        given = {name: given.column(name).to_pylist() for name in given.column_names}
    if isinstance(given, Mapping):
        return {str(name): _array(str(name), values) for name, values in given.items()}
    return {default: _array(default, given)}


def _array(name: str, values: Any) -> Array:
    """A copy, so that what a caller or Arrow keeps read-only can be made a tensor."""
    try:
        array = np.array(values.detach().cpu().numpy() if hasattr(values, "detach") else values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SpecError(f"the example's {name} is no array: {error}", expected=_KINDS) from None
    if array.ndim == 0 or array.dtype.kind not in "buif":
        held = "a single value" if array.ndim == 0 else f"values of {array.dtype}"
        raise SpecError(f"the example's {name} holds {held}", expected=f"numbers or booleans, rows first: {_KINDS}")
    return array


def _joined(columns: Mapping[str, Array]) -> Array:
    if len(columns) == 1:
        return next(iter(columns.values()))
    try:
        return np.concatenate([array.reshape(len(array), -1) for array in columns.values()], axis=1)
    except ValueError as error:
        raise SpecError(f"the example's columns cannot be one input: {error}") from None


def _chosen(columns: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    if missing := [name for name in names if name not in columns]:
        raise SpecError(f"the example has no {', '.join(missing)}", expected=f"some of {', '.join(columns)}")
    return {name: columns[name] for name in names}


def _read(path: Path) -> Any:
    if path.suffix not in ENDINGS:
        raise SpecError(f"example {path} is of no known kind", expected=f"a file ending in {', '.join(ENDINGS)}")
    if path.suffix in tables.ENDINGS:
        return tables.read(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        document = json.loads(path.read_bytes())
        return pa.Table.from_pylist(document) if isinstance(document, list) else document
    except (OSError, ValueError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise SpecError(f"example {path} cannot be read: {error}") from None
