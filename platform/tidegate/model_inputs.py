"""From the columns of a file to what a model takes, with the problem of each row that does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from tidegate.content import objects
from tidegate.data.canonical import column_of, listed, nearest
from tidegate.data.folders import CONTENT
from tidegate.errors import DataError, RequestError
from tidegate.signature import DATATYPES, Signature, TensorSpec
from tidegate.spec.data import ImageInput, TextInput
from tidegate.tensors import Array, client_column
from tidegate.transforms.arrow import files, is_binary
from tidegate.transforms.audio import encoded
from tidegate.transforms.base import fits, problems, shortened
from tidegate.transforms.category import MISSING, to_labels
from tidegate.transforms.image import ImageColumn
from tidegate.transforms.number import shaped_numbers
from tidegate.transforms.text import TextColumn

PIXEL_MAX = 255.0
TRUTH = {"true": True, "1": True, "false": False, "0": False}
SOUND_BYTES = 2**20
"""About how large an encoded sound is: some tens of them make a request."""
TABLE_BYTES = 32 * 2**20
"""About how much memory the inputs of a few rows take that are read at once."""


class InputReader:
    """Makes the inputs of a signature of tables with these columns.

    `white` is the value of a white pixel by input, 255 where none is given. Raises DataError when a column is missing.
    A single input also takes the content of files that are one row each, whatever its name.
    """

    def __init__(
        self, signature: Signature, columns: Sequence[str], source: str, white: Mapping[str, float] | None = None
    ) -> None:
        self._specs = signature.inputs
        self._white = white or {}
        content = [name for name in CONTENT.values() if name in columns]
        self._columns = {spec.name: spec.name for spec in self._specs}
        if len(self._specs) == 1 and self._specs[0].name not in columns and content:
            self._columns = {self._specs[0].name: content[0]}
        missing = {name: name for name in self._columns.values() if name not in columns}
        if missing:
            raise DataError(
                f"{source} has no column {', '.join(missing)}",
                expected=f"the model's inputs, {', '.join(self._columns)}; it has {listed(columns)}",
                remedy=nearest(missing, columns),
            )

    @property
    def rows_at_once(self) -> int:
        """How many rows `read` should be given."""
        sizes = [
            SOUND_BYTES // 8 if spec.content == "audio" else math.prod(abs(size) for size in spec.shape[1:])
            for spec in self._specs
        ]
        # Pixels are eight bytes each on their way.
        return max(1, TABLE_BYTES // (8 * sum(sizes)))

    def read(self, table: pa.Table) -> tuple[dict[str, Array], Array]:
        """The inputs `[rows, ...]`, and a problem or None for each row. Rows with one hold no meaning."""
        found, inputs = problems(len(table)), {}
        for spec in self._specs:
            name = self._columns[spec.name]
            values, new = self._values(column_of(table, name), spec)
            for row in np.flatnonzero(~fits(new) & fits(found)):
                found[row] = f"{name}: {new[row]}"
            inputs[spec.name] = values
        return inputs, found

    def _values(self, column: pa.Array, spec: TensorSpec) -> tuple[Array, Array]:
        inner, kind = spec.shape[1:], DATATYPES[spec.datatype].kind
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if spec.content == "audio":
            return _sounds(column, spec.sampling_rate)
        if -1 in inner or (kind == "O" and inner):
            return _free(column, spec)
        if kind == "O":
            return _texts(column)
        if is_binary(files(column).type):
            return self._images(files(column), spec)
        if not inner and kind in "iub":
            return _exact(column, DATATYPES[spec.datatype])
        values, found = shaped_numbers(column, inner)
        found[np.isnan(values).any(axis=1) & fits(found)] = "a number is missing or NaN"
        found[np.isinf(values).any(axis=1) & fits(found)] = "a number is infinite"
        if kind in "iub":
            with np.errstate(invalid="ignore"):
                whole = values.astype(DATATYPES[spec.datatype])
            found[(whole != values).any(axis=1) & fits(found)] = f"a number is none that {spec.datatype} holds"
            values = whole
        return values.reshape(len(column), *inner), found

    def _images(self, column: pa.Array, spec: TensorSpec) -> tuple[Array, Array]:
        inner = spec.shape[1:]
        if len(inner) != 3 or inner[2] not in (1, 3):
            raise DataError(
                f"{self._columns[spec.name]} holds bytes, and {spec.name} takes {spec.datatype} {list(spec.shape)}",
                expected="for images, an input of [rows, height, width, 1 or 3 channels]",
                remedy="give the numbers themselves, as lists in a Parquet file",
            )
        white = self._white.get(spec.name, PIXEL_MAX)
        given = ImageInput(type="image", size=list(inner[:2]), channels=inner[2], max_value=white)  # type: ignore[arg-type]
        values, found = ImageColumn(given).read(column)
        pixels = values.flatten().to_numpy(zero_copy_only=False).reshape(len(column), *inner)
        if DATATYPES[spec.datatype].kind in "iu":
            pixels = np.rint(pixels)
        return pixels.astype(DATATYPES[spec.datatype]), found


def _sounds(column: pa.Array, sampling_rate: int) -> tuple[Array, Array]:
    """Encoded sounds, which the model decodes; samples with a rate become such."""
    found, values = problems(len(column)), [b""] * len(column)
    for row, item in enumerate(files(column).to_pylist()):
        try:
            values[row] = encoded(item, sampling_rate)
        except ValueError as error:
            found[row] = str(error)
    return objects(values), found


def _texts(column: pa.Array) -> tuple[Array, Array]:
    values, found = TextColumn(TextInput(type="text")).read(column) if is_binary(column.type) else to_labels(column)
    texts = np.empty(len(column), dtype=object)
    texts[:] = values.to_pylist()
    return texts, found


def _exact(column: pa.Array, dtype: np.dtype[np.generic]) -> tuple[Array, Array]:
    """Whole numbers and booleans, of columns of any type; floats would not hold them all."""
    labels, found = to_labels(column)
    values = np.zeros(len(column), dtype)
    for row, label in enumerate(labels.to_pylist()):
        if found[row] is not None:
            continue
        text = label.strip()
        try:
            values[row] = TRUTH[text.lower()] if dtype.kind == "b" else int(text)
        except (KeyError, ValueError, OverflowError):
            wrong = "neither true nor false" if dtype.kind == "b" else f"no whole number that {dtype.name} holds"
            found[row] = f"{shortened(repr(label))} is {wrong}" if text else MISSING
    return values, found


def _free(column: pa.Array, spec: TensorSpec) -> tuple[Array, Array]:
    """Values whose sizes differ from request to request: one array if they are alike, else a ragged one."""
    found, values = problems(len(column)), column.to_pylist()
    for row, value in enumerate(values):
        if value is None:
            found[row] = "the value is missing"
    filler = next((value for value in values if value is not None), None)
    whole = [filler if value is None else value for value in values]
    try:
        return client_column(spec.name, whole, spec), found
    except RequestError:
        pass  # Some value is no such array, or they differ in size: find out row by row.
    rows: list[Array] = []
    for row, value in enumerate(whole):
        try:
            rows.append(client_column(spec.name, [value], spec)[0])
        except RequestError as error:
            found[row] = found[row] or error.happened
            rows.append(rows[-1] if rows else np.zeros(1))
    return objects(rows), found
