"""Finishing: applies the fitted transforms to the staged files and writes the prepared ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from tidegate.data.prepared import ROW, SPLITS, TARGET, column_array, open_arrays, write_arrays
from tidegate.data.stage import tasks
from tidegate.errors import DataError, RequestError
from tidegate.transforms.base import Array, State
from tidegate.transforms.columns import Columns
from tidegate.transforms.target import target_transform


def finish(
    states: dict[str, State], column: str, target: State, staged: list[dict[str, Any]], work: Path
) -> dict[str, list[dict[str, Any]]]:
    """Apply the transforms to every staged file; the files of each split."""
    finisher = Finisher(states, column, target, work)
    items = [
        {"item": json.dumps({key: record[key] for key in ("index", "name", "split", "rows")})} for record in staged
    ]
    blocks = tasks([record["name"] for record in staged], len(items))
    done = ray.data.from_items(items, override_num_blocks=blocks).map(finisher).take_all()
    records = sorted((json.loads(row["item"]) for row in done), key=lambda record: int(record["index"]))
    for record in records:
        if record["unseen"] is not None:
            raise DataError(
                f"the class {record['unseen']!r} of column {column} occurs in the {record['split']} split only",
                remedy=f"stratify the split by {column}, or drop that class",
            )
        if record["unfit"]:
            raise DataError(
                f"the {record['split']} split holds what the transforms fitted on the training split cannot take: "
                f"{record['unfit']}",
                remedy=record["remedy"]
                or "correct the data; for a category, `unknown: bucket` takes values that are new",
            )
    return {
        split: [{key: r[key] for key in ("name", "rows", "bytes")} for r in records if r["split"] == split]
        for split in SPLITS
    }


class Finisher:
    """Applies the fitted transforms to a staged file and writes the final one."""

    def __init__(self, states: dict[str, State], column: str, target: State, work: Path) -> None:
        self.states, self.column, self.target, self.work = states, column, target, work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        record = json.loads(row["item"])
        staged = self.work / f"stage-{record['name']}"
        with pa.memory_map(str(staged)) as source:
            table = pa.ipc.open_file(source).read_all()
            values = {name: column_array(table.column(name)) for name in table.column_names}
        record |= {"unseen": self._unseen(values[TARGET]), "unfit": ""}
        if record["unseen"] is None:
            try:
                record["bytes"] = self._write(record, values)
            except RequestError as error:
                record |= {"unfit": str(RequestError(error.happened, expected=error.expected)), "remedy": error.remedy}
        staged.unlink()
        return {"item": json.dumps(record)}

    def _write(self, record: dict[str, Any], values: dict[str, Array]) -> int:
        arrays = {ROW: values[ROW], TARGET: target_transform(self.column, self.target).apply(values[TARGET])}
        size = write_arrays(self.work / record["name"], arrays | Columns(self.states).apply(values))
        open_arrays(self.work / record["name"], record["rows"])
        return size

    def _unseen(self, values: Array) -> str | None:
        if self.target["type"] != "category":
            return None
        return next((str(value) for value in values.tolist() if value not in self.target["classes"]), None)
