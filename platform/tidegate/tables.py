"""Tables in files: Parquet, CSV and JSON lines, for predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from tidegate.errors import DataError

Array = npt.NDArray[Any]
PREFIX = "predicted_"
ENDINGS = (".parquet", ".csv", ".jsonl")


def read(path: Path) -> pa.Table:
    """A whole file. Raises DataError when it is missing, unreadable or of another kind."""
    readers = {".parquet": pa.parquet.read_table, ".csv": pa.csv.read_csv, ".jsonl": pa.json.read_json}
    if path.suffix not in readers:
        raise DataError(f"{path} is of no known kind", expected=f"a file ending in {', '.join(ENDINGS)}")
    if not path.is_file():
        raise DataError(f"there is no file {path}", remedy="correct the path")
    try:
        return readers[path.suffix](str(path))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def check_output(path: Path) -> None:
    """Raise DataError when `write` could not write there: better before the work than after it."""
    if path.suffix not in ENDINGS:
        raise DataError(f"{path} is of no known kind", expected=f"a file ending in {', '.join(ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise DataError(f"there is no folder {path.absolute().parent}", remedy="create it first")


def write(table: pa.Table, path: Path) -> None:
    """Write a whole file, of the kind its ending names. Raises DataError."""
    check_output(path)
    try:
        _write(table, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None


def _write(table: pa.Table, path: Path) -> None:
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, str(path))
    elif path.suffix == ".csv":
        pa.csv.write_csv(_without_lists(table), str(path))
    else:
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()))


def columns(table: pa.Table, names: Sequence[str], source: str) -> dict[str, list[Any]]:
    """The named columns as lists. Raises DataError when one is missing."""
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise DataError(
            f"{source} has no column {', '.join(missing)}", expected=f"the endpoint's inputs: {', '.join(names)}"
        )
    return {name: table.column(name).to_pylist() for name in names}


def with_answers(table: pa.Table, answers: Mapping[str, Array]) -> pa.Table:
    """The table with a column `predicted_<output>` for each output."""
    for name, values in answers.items():
        table = table.append_column(PREFIX + name, pa.array(np.asarray(values).tolist()))
    return table


def preview(table: pa.Table, outputs: Sequence[str], rows: int = 10) -> str:
    """The answers of the first rows as JSON lines."""
    shown = table.select([PREFIX + name for name in outputs]).slice(0, rows)
    lines = [json.dumps({key: _rounded(value) for key, value in row.items()}) for row in shown.to_pylist()]
    return "\n".join(
        lines + ([f"... {table.num_rows - rows} more rows; use -o to keep them"] if table.num_rows > rows else [])
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def _without_lists(table: pa.Table) -> pa.Table:
    """CSV has no lists: they become JSON text."""
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = pa.array([json.dumps(value, default=str) for value in table.column(index).to_pylist()])
            table = table.set_column(index, field.name, texts)
    return table
