"""Audits a whole, undisturbed run: every planned row once an epoch, in the order of the plan, whatever the workers.

    python tests/audit_ledger.py LEDGER_DIR PREPARED_FOLDER SPEC.yaml

The ledger is what workers wrote with TIDEGATE_LEDGER set. That each row counts once an epoch is checked against the
prepared files themselves, not against the plan; only the order is the plan's. Exits with 1 at the first difference.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tidegate.data.plan import Plan
from tidegate.data.prepared import Prepared, open_folder
from tidegate.spec import run
from tidegate.training.job import plan_of


class AuditError(Exception):
    """The ledger is not that of a whole run."""


@dataclass(frozen=True)
class Audited:
    """What was found to be in order."""

    rows: int
    epochs: int
    workers: int


def audit(ledger: Path, prepared: Prepared, spec: run.Spec) -> Audited:
    """Check a run's ledger. Early stopping may end a run after any epoch. Raises AuditError."""
    plan = plan_of(spec, prepared)
    shards = _shards(ledger)
    steps = 1 + max(step for step, _ in shards)
    if steps % plan.steps_per_epoch or (
        steps != spec.train.epochs * plan.steps_per_epoch and not spec.train.early_stop
    ):
        raise AuditError(f"the ledger ends after step {steps - 1}, in the middle of the run")
    source = _source_rows(prepared)
    if len(set(source)) != len(source):
        raise AuditError("two prepared rows have the same number")
    for epoch in range(steps // plan.steps_per_epoch):
        _audit_epoch(epoch, shards, plan, source)
    return Audited(sum(map(len, shards.values())), steps // plan.steps_per_epoch, len(list(ledger.iterdir())))


def _audit_epoch(epoch: int, shards: dict[tuple[int, int], list[int]], plan: Plan, source: list[int]) -> None:
    first = epoch * plan.steps_per_epoch
    places = [(step, shard) for step in range(first, first + plan.steps_per_epoch) for shard in range(plan.shards)]
    seen = Counter(row for place in places for row in shards.get(place, []))
    for row, count in ((Counter(source) - seen) + (seen - Counter(source))).items():
        raise AuditError(f"epoch {epoch + 1}: row {row} was trained on {seen[row]} times, planned once ({count} off)")
    for step, shard in places:
        planned = [source[place] for place in plan.shard_rows(step, shard)]
        found = shards.get((step, shard), [])
        if found != planned:
            raise AuditError(f"step {step}, shard {shard}: rows {found[:5]}... where {planned[:5]}... were planned")


def _shards(ledger: Path) -> dict[tuple[int, int], list[int]]:
    """Rows by step and shard, from all workers of one run; each worker's entries are in order."""
    found: dict[tuple[int, int], list[int]] = {}
    files = sorted(ledger.iterdir())
    if len({file.name.rsplit("-", 2)[0] for file in files}) != 1:
        raise AuditError(f"{ledger} holds the ledgers of no run, or of several")
    for file in files:
        before = (-1, -1)
        for entry in _entries(file):
            place = (entry["step"], entry["shard"])
            if place in found:
                raise AuditError(f"step {place[0]}, shard {place[1]} was trained on twice")
            if place < before:
                raise AuditError(f"{file.name}: step {place[0]}, shard {place[1]} comes after {before}")
            found[place], before = entry["rows"], place
    if not found:
        raise AuditError(f"{ledger} is empty")
    return found


def _entries(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _source_rows(prepared: Prepared) -> list[int]:
    """The source's row number at each place of the training split, read without Tidegate's reader."""
    parts = []
    for file in prepared.files("train"):
        with pa.memory_map(str(file)) as mapped:
            parts.append(pa.ipc.open_file(mapped).read_all().column("__row").to_numpy())
    rows: list[int] = np.concatenate(parts).tolist()
    return rows


def main() -> int:
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        found = audit(Path(sys.argv[1]), open_folder(Path(sys.argv[2])), run.load(sys.argv[3]))
    except AuditError as error:
        print(f"not exactly once: {error}", file=sys.stderr)
        return 1
    print(f"every row once an epoch, in order: {found.rows} rows, {found.epochs} epochs, {found.workers} workers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
