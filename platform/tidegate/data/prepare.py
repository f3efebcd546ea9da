"""prepare: read, check, split, fit transforms on the training split, and write the prepared dataset, with Ray Data.

The result is the same bytes whatever the cluster: rows are numbered in the source's order, what each file holds follows
from row numbers and the seed, and fitted states are merged file by file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from filelock import FileLock

from tidegate import settings
from tidegate.data import sources
from tidegate.data.canonical import NAMED, PROBLEM, STRATUM, Canonicalise
from tidegate.data.prepared import (
    FORMAT,
    MANIFEST,
    ROW,
    SPLITS,
    TARGET,
    Prepared,
    column_array,
    open_arrays,
    open_folder,
    write_arrays,
)
from tidegate.data.random import Rows
from tidegate.data.splits import assign
from tidegate.errors import DataError, RequestError
from tidegate.spec.data import Data, InvalidRows
from tidegate.spec.run import Spec
from tidegate.transforms.base import Array, State, fits
from tidegate.transforms.columns import Columns, canonical, row_bytes
from tidegate.transforms.target import TargetColumn, TargetTransform

FILE_BYTES = 32 * 2**20
FILE, PLACE = "__file", "__place"
MAX_PARTITIONS = 64
"""Of the shuffle that brings the rows of a file together: every block of the source is cut into that many parts."""
Say = Callable[[str], None]


def prepare(spec: Spec, say: Say) -> Prepared:
    """The prepared dataset of a spec: the one made before when source and spec are the same, else made now.

    Raises DataError for a source that is missing or does not fit the spec.
    """
    files = sources.listing(spec.data.source)
    mark = fingerprint(spec, files)
    folder = settings.home() / "prepared" / f"{spec.name}-{mark[:12]}"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / MANIFEST).exists():
            try:
                prepared = open_folder(folder)
            except DataError as error:
                say(f"{error.happened}: making it anew")
            else:
                say(f"prepared data: {_counts(prepared)} (made before, source and spec unchanged)")
                return prepared
        shutil.rmtree(folder, ignore_errors=True)
        work = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            _make(spec, files, mark, work, say)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    prepared = open_folder(folder)
    say(f"prepared data: {_counts(prepared)}")
    return prepared


def fingerprint(spec: Spec, files: list[sources.SourceFile]) -> str:
    """sha256 of the source's files (path, size, time of change), the data part of the spec and the seed."""
    document = {
        "format": FORMAT,
        "files": [asdict(file) for file in files],
        "data": spec.data.model_dump(),
        "seed": spec.seed,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _counts(prepared: Prepared) -> str:
    return ", ".join(f"{prepared.num_rows(split)} {split}" for split in SPLITS) + " rows"


def _make(spec: Spec, files: list[sources.SourceFile], mark: str, work: Path, say: Say) -> None:
    say(f"reading {len(files)} {'file' if len(files) == 1 else 'files'} of {spec.data.source.path}")
    checked = _checked(spec.data, files)
    order, dropped = _usable(spec.data, checked, say)
    parts = assign(spec.data.split, spec.seed, strata=order.get(STRATUM), named=order.get(NAMED), count=len(order[ROW]))
    rows_per_file = max(1, FILE_BYTES // row_bytes(spec.data))
    staged = _stage(spec.data, checked, [order[ROW][part] for part in parts], rows_per_file, work)
    states, target = _fit(spec.data, staged)
    written = _finish(states, spec.data.target.column, target, staged, work)
    manifest = {
        "format": FORMAT,
        "fingerprint": mark,
        "source": {"path": spec.data.source.path, "files": [asdict(file) for file in files], "dropped": dropped},
        "columns": states,
        "target": {"column": spec.data.target.column, "state": target},
        "splits": written,
    }
    (work / MANIFEST).write_text(json.dumps(manifest))


def _count(block: pa.Table) -> int:
    return len(block)


def _numbered(block: pa.Table, start: int) -> pa.Table:
    return block.append_column(ROW, pa.array(np.arange(start, start + len(block))))


def _checked(data: Data, files: list[sources.SourceFile]) -> ray.data.Dataset:
    """The source in canonical form, with row numbers, in memory (spilled by Ray where it does not fit)."""
    reader = Canonicalise(data)
    reader.check(sources.column_names(data.source, files))
    canonical = sources.read(data.source, files, reader.columns, reader)
    canonical.context.execution_options.preserve_order = True
    blocks = _blocks(canonical)
    count, number = ray.remote(_count), ray.remote(_numbered)
    counts = ray.get([count.remote(block) for block in blocks])
    if not sum(counts):
        raise DataError(f"the source {data.source.path} has no rows")
    starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
    numbered = [number.remote(block, start) for block, start, rows in zip(blocks, starts, counts, strict=False) if rows]
    return ray.data.from_arrow_refs(numbered)


def _blocks(dataset: ray.data.Dataset) -> list[ray.ObjectRef[pa.Table]]:
    """The blocks of a dataset. Raises the DataError that a task raised, without Ray's tracebacks."""
    try:
        return list(dataset.to_arrow_refs())
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, DataError) and type(cause) is DataError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise cause or error from None


def _usable(data: Data, checked: ray.data.Dataset, say: Say) -> tuple[dict[str, Array], int]:
    """Row numbers, strata and split names of the rows that fit; and how many rows were dropped."""
    names = [ROW, PROBLEM, *([STRATUM] if data.split.stratify else []), *([NAMED] if data.split.column else [])]
    batches = checked.select_columns(names).iter_batches(batch_size=None, batch_format="pyarrow")
    table = pa.concat_tables(batches)
    columns = {name: column_array(table.column(name)) for name in names}
    found = columns.pop(PROBLEM)
    usable = fits(found)
    _judge(data.invalid_rows, columns[ROW], found, say)
    kept = {name: values[usable] for name, values in columns.items()}
    return kept, int((~usable).sum())


def _judge(rule: InvalidRows, rows: Rows, found: Array, say: Say) -> None:
    """Raise DataError when invalid rows are more than the spec allows; say what is dropped otherwise."""
    wrong = np.flatnonzero(~fits(found))
    if not len(wrong):
        return
    examples = "; ".join(f"row {rows[i]}: {found[i]}" for i in wrong[:5]) + ("; ..." if len(wrong) > 5 else "")
    summary = f"{len(wrong)} of {len(found)} rows do not fit ({examples})"
    if rule.action == "refuse":
        raise DataError(summary, remedy="correct the data, or write data.invalid_rows: {action: drop}")
    if len(wrong) > rule.max_fraction * len(found):
        raise DataError(
            summary,
            expected=f"at most {rule.max_fraction:.2%} of the rows, as data.invalid_rows.max_fraction says",
            remedy="correct the data, or raise the fraction",
        )
    say(f"dropped {summary}")


def _stage(
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

    def stage(group: pa.Table) -> pa.Table:
        return write(group)

    records = (
        checked.map_batches(address, batch_format="pyarrow", batch_size=None)
        .groupby(FILE, num_partitions=_tasks(names, MAX_PARTITIONS))
        .map_groups(stage, batch_format="pyarrow")
        .take_all()
    )
    return sorted((json.loads(record["record"]) for record in records), key=lambda record: int(record["index"]))


def _tasks(names: Sequence[str], limit: int) -> int:
    """As many tasks as full files, at least one: for little data, starting processes takes longer than the work."""
    return min(limit, max(1, len(names) - len(SPLITS)))


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
        return {"columns": parts, "target": TargetColumn(self.data.target).partial(column_array(group.column(TARGET)))}


def _fit(data: Data, staged: list[dict[str, Any]]) -> tuple[dict[str, State], State]:
    parts = [record["partial"] for record in staged if record["split"] == "train"]
    states = {
        name: canonical(column).fit([part["columns"][name] for part in parts]) for name, column in data.inputs.items()
    }
    target = TargetColumn(data.target).fit([part["target"] for part in parts])
    if target["type"] == "category" and len(target["classes"]) < 2:
        raise DataError(
            f"the training split has only the class {target['classes'][0]!r} in column {data.target.column}",
            expected="at least two classes",
        )
    return states, target


def _finish(
    states: dict[str, State], column: str, target: State, staged: list[dict[str, Any]], work: Path
) -> dict[str, list[dict[str, Any]]]:
    """Apply the transforms to every staged file; the files of each split."""
    finisher = Finisher(states, column, target, work)
    items = [
        {"item": json.dumps({key: record[key] for key in ("index", "name", "split", "rows")})} for record in staged
    ]
    blocks = _tasks([record["name"] for record in staged], len(items))
    done = ray.data.from_items(items, override_num_blocks=blocks).map(finisher).take_all()
    records = sorted((json.loads(row["item"]) for row in done), key=lambda record: int(record["index"]))
    for record in records:
        if record["unseen"]:
            raise DataError(
                f"the class {record['unseen']!r} of column {column} occurs in the {record['split']} split only",
                remedy=f"stratify the split by {column}, or drop that class",
            )
        if record["unfit"]:
            raise DataError(
                f"the {record['split']} split holds what the transforms fitted on the training split cannot take: "
                f"{record['unfit']}",
                remedy="correct the data; for a category, `unknown: bucket` takes values that are new",
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
        if not record["unseen"]:
            try:
                record["bytes"] = self._write(record, values)
            except RequestError as error:
                record["unfit"] = str(error)
        staged.unlink()
        return {"item": json.dumps(record)}

    def _write(self, record: dict[str, Any], values: dict[str, Array]) -> int:
        arrays = {ROW: values[ROW], TARGET: TargetTransform(self.column, self.target).apply(values[TARGET])}
        size = write_arrays(self.work / record["name"], arrays | Columns(self.states).apply(values))
        open_arrays(self.work / record["name"], record["rows"])
        return size

    def _unseen(self, values: Array) -> str:
        if self.target["type"] != "category":
            return ""
        return next((str(value) for value in values.tolist() if value not in self.target["classes"]), "")
