"""Tables in files: Parquet, CSV and JSON lines, for predictions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
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
    """Raise DataError when nothing could be written there: better before the work than after it."""
    if path.suffix not in ENDINGS:
        raise DataError(f"{path} is of no known kind", expected=f"a file ending in {', '.join(ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise DataError(f"there is no folder {path.absolute().parent}", remedy="create it first")


def answer_names(columns: Iterable[str], outputs: Iterable[str]) -> dict[str, str]:
    """The column of each output: `predicted_<output>`, with a number where the table has one of that name."""
    taken, names = set(columns), {}
    for output in outputs:
        wanted = f"{PREFIX}{output}"
        numbered = (f"{wanted}_{number}" for number in count(2))
        names[output] = wanted if wanted not in taken else next(name for name in numbered if name not in taken)
        taken.add(names[output])
    return names


def with_answers(table: pa.Table, answers: Mapping[str, Array], names: Mapping[str, str]) -> pa.Table:
    """The table with a column for each output, as `answer_names` names it."""
    for name, values in answers.items():
        table = table.append_column(names[name], arrow(values))
    return table


def arrow(values: Array) -> pa.Array:
    """An output as a column: lists for what has more than one value a row."""
    if values.dtype.kind == "O":
        return pa.array(values.tolist())
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        offsets = np.arange(0, len(column) + 1, size, dtype=np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), column)
    return column


def preview(table: pa.Table, columns: Sequence[str]) -> str:
    """Columns as JSON lines, rounded."""
    rows = table.select(list(columns)).to_pylist()
    return "\n".join(json.dumps({key: _rounded(value) for key, value in row.items()}, default=str) for row in rows)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
