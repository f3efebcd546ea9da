"""Audits a run's final history: every planned row once an epoch, in the order of the plan, whatever befell the run.

    python tests/audit_ledger.py LEDGER_DIR PREPARED_FOLDER SPEC.yaml

The ledger is what workers wrote with TIDEGATE_LEDGER set. Where workers were lost, steps were computed again: of each
step the notes written last are the ones that led to the final model, the others are counted as thrown away. The final
history must be one chain in time: no note of a step may be older than any note of the step before (machines' clocks
must agree for that). That each row counts once an epoch is checked against the prepared files themselves, not against
the plan; only the order is the plan's. Exits with 1 at the first difference.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tidegate.data.plan import Plan
from tidegate.data.prepared import Prepared, open_folder
from tidegate.spec import run
from tidegate.training.job import plan_of

Place = tuple[int, int]
"""A step and a shard."""


class AuditError(Exception):
    """The ledger is not that of a whole run."""


@dataclass(frozen=True)
class Audited:
    """What was found to be in order. `rows` are those of the final history; `workers` counts processes.

    `rows_thrown_away` were computed and lost again, in `steps_twice` steps that were at least begun.
    """

    rows: int
    epochs: int
    workers: int
    rows_thrown_away: int
    steps_twice: int


@dataclass(frozen=True)
class Note:
    """A line of the ledger. `at` is in nanoseconds, `process` the file it is in."""

    step: int
    shard: int
    rows: list[int]
    at: int
    process: str

    @property
    def place(self) -> Place:
        return self.step, self.shard


def audit(ledger: Path, prepared: Prepared, spec: run.Spec) -> Audited:
    """Check a run's ledger. Early stopping may end a run after any epoch. Raises AuditError."""
    plan = plan_of(spec, prepared)
    notes = _notes(ledger)
    final = {note.place: note for note in notes}
    thrown_away = [note for note in notes if final[note.place] is not note]
    _check_chain(final, thrown_away)
    steps = 1 + max(step for step, _ in final)
    if steps % plan.steps_per_epoch or (
        steps != spec.train.epochs * plan.steps_per_epoch and not spec.train.early_stop
    ):
        raise AuditError(f"the ledger ends after step {steps - 1}, in the middle of the run")
    source = _source_rows(prepared)
    if len(set(source)) != len(source):
        raise AuditError("two prepared rows have the same number")
    rows = {place: note.rows for place, note in final.items()}
    for epoch in range(steps // plan.steps_per_epoch):
        _audit_epoch(epoch, rows, plan, source)
    return Audited(
        rows=sum(map(len, rows.values())),
        epochs=steps // plan.steps_per_epoch,
        workers=len({note.process for note in notes}),
        rows_thrown_away=sum(len(note.rows) for note in thrown_away),
        steps_twice=_times_again(thrown_away),
    )


def _notes(ledger: Path) -> list[Note]:
    """All notes of one run, from the oldest to the newest; each process's are in order."""
    files = sorted(ledger.iterdir())
    if len({file.name.rsplit("-", 2)[0] for file in files}) != 1:
        raise AuditError(f"{ledger} holds the ledgers of no run, or of several")
    notes: list[Note] = []
    for file in files:
        before = (-1, -1)
        for entry in _entries(file):
            note = Note(**entry, process=file.name)
            if note.place <= before:
                raise AuditError(f"{file.name}: step {note.step}, shard {note.shard} comes after {before}")
            notes.append(note)
            before = note.place
    if not notes:
        raise AuditError(f"{ledger} is empty")
    return sorted(notes, key=lambda note: note.at)


def _entries(file: Path) -> list[dict[str, Any]]:
    """The lines of a process. One that was killed in the middle of its last line never computed it."""
    whole, _, _ = file.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def _check_chain(final: dict[Place, Note], thrown_away: list[Note]) -> None:
    """The final history is one chain: its steps follow each other in time, and none is patched of two attempts."""
    times: dict[int, list[int]] = defaultdict(list)
    for note in final.values():
        times[note.step].append(note.at)
    newest = 0
    for step in sorted(times):
        if min(times[step]) < newest:
            raise AuditError(f"step {step} of the final history was begun before the step before it had ended")
        newest = max(times[step])
    used = {(note.process, note.step) for note in final.values()}
    for note in thrown_away:
        if (note.process, note.step) in used:
            raise AuditError(f"step {note.step} of the final history is of two attempts: part of {note.process}'s")


def _times_again(thrown_away: list[Note]) -> int:
    """How many steps were begun in vain, each as often as it was."""
    attempts = Counter(note.place for note in thrown_away)
    most: Counter[int] = Counter()
    for (step, _), count in attempts.items():
        most[step] = max(most[step], count)
    return most.total()


def _audit_epoch(epoch: int, shards: dict[Place, list[int]], plan: Plan, source: list[int]) -> None:
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
    print(f"thrown away: {found.rows_thrown_away} rows of {found.steps_twice} steps that were begun in vain")
    return 0


if __name__ == "__main__":
    sys.exit(main())
