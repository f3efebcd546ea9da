"""Helpers that tests of several folders share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings

from tidegate.data.prepared import (
    FORMAT,
    MANIFEST,
    ROW,
    SPLITS,
    TARGET,
    Prepared,
    column_array,
    open_folder,
    write_arrays,
)
from tidegate.data.splits import assign
from tidegate.spec.run import Spec
from tidegate.transforms.columns import Columns, canonical
from tidegate.transforms.target import target_column, target_transform

# Machines that run tests are shared: a slow example says nothing.
settings.register_profile("tidegate", deadline=None)
settings.load_profile("tidegate")

PrepareByHand = Callable[..., Prepared]


@pytest.fixture(scope="session")
def prepare_by_hand() -> PrepareByHand:
    """What prepare makes of a table, without Ray: `prepare_by_hand(folder, spec, table, files=3)`."""
    return _prepare_by_hand


def _prepare_by_hand(folder: Path, spec: Spec, table: pa.Table, *, files: int = 3) -> Prepared:
    data, target = spec.data, spec.data.target
    values = {
        name: column_array(canonical(column).read(_column(table, name))[0]) for name, column in data.inputs.items()
    }
    values[TARGET] = column_array(target_column(target).read(_column(table, target.column))[0])
    parts = dict(zip(SPLITS, assign(data.split, spec.seed, strata=None, named=None, count=len(table)), strict=True))
    train = parts["train"]
    states = {n: canonical(c).fit([canonical(c).partial(values[n][train])]) for n, c in data.inputs.items()}
    target_state = target_column(target).fit([target_column(target).partial(values[TARGET][train])])
    folder.mkdir(parents=True)
    written: dict[str, list[dict[str, object]]] = {}
    for split, rows in parts.items():
        written[split] = []
        for number, mine in enumerate(np.array_split(rows, files if split == "train" else 1)):
            arrays = {ROW: mine, TARGET: target_transform(target.column, target_state).apply(values[TARGET][mine])}
            arrays |= Columns(states).apply({name: values[name][mine] for name in data.inputs})
            name = f"{split}-{number:05d}.arrow"
            written[split].append({"name": name, "rows": len(mine), "bytes": write_arrays(folder / name, arrays)})
    manifest = {
        "format": FORMAT,
        "fingerprint": "made by hand",
        "source": {"path": "none", "files": [], "dropped": 0},
        "columns": states,
        "target": {"column": target.column, "state": target_state},
        "splits": written,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return open_folder(folder)


def _column(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()
