"""prepare: read, check, split, fit transforms on the training split, and write the prepared dataset, with Ray Data.

The result is the same bytes whatever the cluster: rows are numbered in the source's order, what each file holds follows
from row numbers and the seed, and fitted states are merged file by file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
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
from tidegate.data.finish import finish
from tidegate.data.prepared import (
    FORMAT,
    MANIFEST,
    ROW,
    SPLITS,
    Prepared,
    column_array,
    open_folder,
)
from tidegate.data.random import Rows
from tidegate.data.splits import assign
from tidegate.data.stage import stage
from tidegate.errors import DataError
from tidegate.spec.data import Data, InvalidRows
from tidegate.spec.run import Spec
from tidegate.transforms.base import Array, State, fits
from tidegate.transforms.columns import canonical, row_bytes
from tidegate.transforms.target import target_column

FILE_BYTES = 32 * 2**20
Say = Callable[[str], None]
Place = Callable[[int], str]
"""How a message names a row."""


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
    """sha256 of the source's files (path, size, time of change), the data part of the spec and the seed.

    What is done to prepared rows while training goes on is left out: it changes nothing here.
    """
    document = {
        "format": FORMAT,
        "files": [asdict(file) for file in files],
        "data": spec.data.model_dump(exclude={"feed": True, "inputs": {"__all__": {"augment"}}}),
        "order": list(spec.data.inputs),
        "seed": spec.seed,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _counts(prepared: Prepared) -> str:
    return ", ".join(f"{prepared.num_rows(split)} {split}" for split in SPLITS) + " rows"


def _make(spec: Spec, files: list[sources.SourceFile], mark: str, work: Path, say: Say) -> None:
    if ray.available_resources().get("CPU", 0) < 1:
        # Ray Data waits without a word.
        say("waiting for a CPU to prepare the data with: all are taken, see `tidegate capacity`")
    say(f"reading {len(files)} {'file' if len(files) == 1 else 'files'} of {sources.shown(spec.data.source.path)}")
    checked = _checked(spec.data, files)
    order, dropped = _usable(spec.data, checked, partial(sources.place, spec.data.source, files), say)
    parts = assign(spec.data.split, spec.seed, strata=order.get(STRATUM), named=order.get(NAMED), count=len(order[ROW]))
    staged = stage(spec.data, checked, [order[ROW][part] for part in parts], _rows_at_once(spec.data), work)
    states, target = _fit(spec.data, staged)
    written = finish(states, spec.data.target.column, target, staged, work)
    manifest = {
        "format": FORMAT,
        "fingerprint": mark,
        "source": {"path": spec.data.source.path, "files": [asdict(file) for file in files], "dropped": dropped},
        "columns": states,
        "target": {"column": spec.data.target.column, "state": target},
        "splits": written,
    }
    (work / MANIFEST).write_text(json.dumps(manifest))


def _rows_at_once(data: Data) -> int:
    """How many rows are brought to their prepared form together, and make a file."""
    return max(1, FILE_BYTES // row_bytes(data))


def _count(block: pa.Table) -> int:
    return len(block)


def _numbered(block: pa.Table, start: int) -> pa.Table:
    return block.append_column(ROW, pa.array(np.arange(start, start + len(block))))


def _checked(data: Data, files: list[sources.SourceFile]) -> ray.data.Dataset:
    """The source in canonical form, with row numbers, in memory (spilled by Ray where it does not fit)."""
    reader = Canonicalise(data)
    reader.check(sources.column_names(data.source, files))
    canonical = sources.read(data.source, files, reader.columns, reader, _rows_at_once(data))
    canonical.context.execution_options.preserve_order = True
    blocks = _blocks(canonical)
    count, number = ray.remote(_count), ray.remote(_numbered)
    counts = ray.get([count.remote(block) for block in blocks])
    if not sum(counts):
        raise DataError(
            f"the source {sources.shown(data.source.path)} has no rows",
            remedy="give it some, or correct data.source.path",
        )
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


def _usable(data: Data, checked: ray.data.Dataset, place: Place, say: Say) -> tuple[dict[str, Array], int]:
    """Row numbers, strata and split names of the rows that fit; and how many rows were dropped."""
    names = [ROW, PROBLEM, *([STRATUM] if data.split.stratify else []), *([NAMED] if data.split.column else [])]
    batches = checked.select_columns(names).iter_batches(batch_size=None, batch_format="pyarrow")
    # Batches arrive as their tasks end.
    table = pa.concat_tables(batches).sort_by(ROW)
    columns = {name: column_array(table.column(name)) for name in names}
    found = columns.pop(PROBLEM)
    usable = fits(found)
    _judge(data.invalid_rows, columns[ROW], found, place, say)
    kept = {name: values[usable] for name, values in columns.items()}
    return kept, int((~usable).sum())


def _judge(rule: InvalidRows, rows: Rows, found: Array, place: Place, say: Say) -> None:
    """Raise DataError when invalid rows are more than the spec allows; say what is dropped otherwise."""
    wrong = np.flatnonzero(~fits(found))
    if not len(wrong):
        return
    examples = "; ".join(f"{place(int(rows[i]))}: {found[i]}" for i in wrong[:5]) + ("; ..." if len(wrong) > 5 else "")
    summary = f"{len(wrong)} of {len(found)} rows do not fit ({examples})"
    if len(wrong) == len(found):
        column = str(found[wrong[0]]).partition(":")[0]
        raise DataError(summary, remedy=f"no row is left: correct what the spec says of {column!r}, or the data")
    if rule.action == "refuse":
        raise DataError(summary, remedy="correct the data, or write data.invalid_rows: {action: drop}")
    if len(wrong) > rule.max_fraction * len(found):
        raise DataError(
            summary,
            expected=f"at most {rule.max_fraction:.2%} of the rows, as data.invalid_rows.max_fraction says",
            remedy="correct the data, or raise the fraction",
        )
    say(f"dropped {summary}")


def _fit(data: Data, staged: list[dict[str, Any]]) -> tuple[dict[str, State], State]:
    parts = [record["partial"] for record in staged if record["split"] == "train"]
    states = {
        name: canonical(column).fit([part["columns"][name] for part in parts]) for name, column in data.inputs.items()
    }
    target = target_column(data.target).fit([part["target"] for part in parts])
    if target["type"] == "category" and len(target["classes"]) < 2:
        raise DataError(
            f"the training split has only the class {target['classes'][0]!r} in column {data.target.column}",
            expected="at least two classes",
            remedy="correct data.target.column, or give rows of another class",
        )
    return states, target
