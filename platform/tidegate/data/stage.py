"""Staging: brings the rows of each prepared file together, in canonical form, with what the fits need of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from tidegate.data.prepared import ROW, SPLITS, TARGET, column_array
from tidegate.data.random import Rows
from tidegate.spec.data import Data
from tidegate.transforms.base import State
from tidegate.transforms.columns import canonical
from tidegate.transforms.target import target_column

FILE, PLACE = "__file", "__place"
MAX_PARTITIONS = 64
"""Of the shuffle that brings the rows of a file together: every block of the source is cut into that many parts."""


def stage(
    data: Data, checked: ray.data.Dataset, parts: list[Rows], rows_per_file: int, work: Path
) -> list[dict[str, Any]]:
    """Bring each file's rows together and write them in canonical form; one record a file, with its partial fits."""
    files, places, names = _addresses(int(checked.count()), parts, rows_per_file)
    table = ray.put((files, places))

    def address(batch: pa.Table) -> pa.Table:
        files, places = ray.get(table)
        rows = batch.column(ROW).to_numpy()
        batch = batch.append_column(FILE, pa.array(files[rows])).append_column(PLACE, pa.array(places[rows]))
        return batch.filter(pa.compute.greater_equal(batch.column(FILE), 0))

    write = StageWriter(data, names, work)

    def write_group(group: pa.Table) -> pa.Table:
        # Ray names the step after a function; the writer is an object.
        return write(group)

    records = (
        checked.map_batches(address, batch_format="pyarrow", batch_size=None)
        .groupby(FILE, num_partitions=tasks(names, MAX_PARTITIONS))
        .map_groups(write_group, batch_format="pyarrow")
        .take_all()
    )
    return sorted((json.loads(record["record"]) for record in records), key=lambda record: int(record["index"]))


def _addresses(count: int, parts: list[Rows], rows_per_file: int) -> tuple[Rows, Rows, list[str]]:
    """For each source row its file (-1: none) and its place there; and the files' names."""
    files, places = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    names: list[str] = []
    for split, rows in zip(SPLITS, parts, strict=True):
        order = np.arange(len(rows))
        files[rows] = len(names) + order // rows_per_file
        places[rows] = order % rows_per_file
        names += [f"{split}-{number:05d}.arrow" for number in range(-(-len(rows) // rows_per_file))]
    return files, places, names


class StageWriter:
    """Writes one file's rows in canonical form and computes what the fits need of them."""

    def __init__(self, data: Data, names: list[str], work: Path) -> None:
        self.data, self.names, self.work = data, names, work

    def __call__(self, group: pa.Table) -> pa.Table:
        index = int(group.column(FILE)[0].as_py())
        group = group.sort_by(PLACE).combine_chunks()
        name = self.names[index]
        split = name.split("-")[0]
        path = self.work / f"stage-{name}"
        kept = group.select([ROW, TARGET, *self.data.inputs])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, kept.schema) as writer:
            for batch in kept.to_batches():
                writer.write_batch(batch)
        partial = self._partial(group) if split == "train" else {}
        record = {"index": index, "name": name, "split": split, "rows": len(group), "partial": partial}
        return pa.table({"record": [json.dumps(record)]})

    def _partial(self, group: pa.Table) -> State:
        parts = {n: canonical(c).partial(column_array(group.column(n))) for n, c in self.data.inputs.items()}
        return {"columns": parts, "target": target_column(self.data.target).partial(column_array(group.column(TARGET)))}


def tasks(names: Sequence[str], limit: int) -> int:
    """As many tasks as full files, at least one: for little data, starting processes takes longer than the work."""
    return min(limit, max(1, len(names) - len(SPLITS)))
