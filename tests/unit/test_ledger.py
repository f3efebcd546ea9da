"""The ledger: what a worker notes, nothing at all without a folder; and what the audit of a run's history notices."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from audit_ledger import Audited, AuditError, audit
from tidegate.data.plan import owned_shards
from tidegate.data.prepared import Prepared
from tidegate.spec.run import Spec
from tidegate.training.job import plan_of
from tidegate.training.ledger import Ledger

EPOCHS, SHARDS = 2, 4
SPEC = Spec.model_validate(
    {
        "name": "numbers",
        "data": {
            "source": {"path": "numbers.parquet"},
            "inputs": {"x": {"type": "number"}},
            "target": {"column": "y", "type": "number"},
        },
        "model": {"type": "linear"},
        "train": {"epochs": EPOCHS, "global_batch": 10, "shards": SHARDS, "workers": {"min": 1, "max": 4}},
    }
)


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_lines_name_step_shard_rows_and_time_at_once_readable(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "deep" / "ledger"), "digits-1a2b", 2)
    file = tmp_path / "deep" / "ledger" / f"digits-1a2b-2-{os.getpid()}.jsonl"
    before = time.time_ns()
    ledger.note(0, 3, np.array([5, 1, 2**40]))
    (line,) = lines_of(file)
    assert before <= line.pop("at") <= time.time_ns()
    assert line == {"step": 0, "shard": 3, "rows": [5, 1, 2**40]}
    ledger.note(1, 0, np.array([4]))
    assert len(lines_of(file)) == 2


def test_a_worker_that_comes_back_appends(tmp_path: Path) -> None:
    for step in range(2):
        Ledger(str(tmp_path), "run", 0).note(step, 0, np.array([step]))
    (file,) = tmp_path.iterdir()
    assert [line["step"] for line in lines_of(file)] == [0, 1]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Ledger("", "run", 0).note(0, 0, np.array([1]))
    assert not list(tmp_path.iterdir())


class Run:
    """Writes the ledger of a run as its workers would."""

    def __init__(self, folder: Path, prepared: Prepared) -> None:
        self.folder, self.prepared = folder, prepared
        self.plan = plan_of(SPEC, prepared)
        self.last = EPOCHS * self.plan.steps_per_epoch
        reader = prepared.reader("train")
        self.source = reader.read(np.arange(self.plan.num_rows))["__row"]
        self.now, self.processes = 0, 1000
        folder.mkdir()

    def group(self, first: int, stop: int, workers: int, torn: int | None = None) -> None:
        """Workers compute `first..stop-1`. All but worker `torn` note the step after too, which does not end."""
        pids = [self.processes + worker for worker in range(workers)]
        self.processes += workers
        for step in range(first, stop + (torn is not None)):
            for worker, pid in enumerate(pids):
                if step == stop and worker == torn:
                    continue
                for shard in owned_shards(SHARDS, worker, workers):
                    self.note(pid, worker, step, shard)

    def note(self, pid: int, worker: int, step: int, shard: int) -> None:
        self.now += 1
        rows = self.source[self.plan.shard_rows(step, shard)].tolist()
        with (self.folder / f"run-{worker}-{pid}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "shard": shard, "rows": rows, "at": self.now}) + "\n")

    def audit(self) -> Audited:
        return audit(self.folder, self.prepared, SPEC)

    def change(self, file: str, edit: Callable[[list[str]], list[str]]) -> None:
        (path,) = self.folder.glob(file)
        path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))


@pytest.fixture
def run(tmp_path: Path, prepare_by_hand: Any) -> Run:
    values = np.arange(60.0)
    table = pa.table({"x": values, "y": values})
    return Run(tmp_path / "ledger", prepare_by_hand(tmp_path / "data", SPEC, table))


def test_an_undisturbed_run_passes_with_nothing_thrown_away(run: Run) -> None:
    run.group(0, run.last, workers=3)
    rows = EPOCHS * run.prepared.num_rows("train")
    assert run.audit() == Audited(rows=rows, epochs=EPOCHS, workers=3, rows_thrown_away=0, steps_twice=0)


def test_resizes_at_checkpoints_throw_nothing_away(run: Run) -> None:
    run.group(0, 2, workers=1)
    run.group(2, 5, workers=4)
    run.group(5, run.last, workers=2)
    assert run.audit().rows_thrown_away == 0
    assert run.audit().workers == 7


def test_what_was_computed_after_the_last_checkpoint_is_counted_as_thrown_away(run: Run) -> None:
    """Steps 3 and 4 are done and lost, 5 is begun and lost, 3 is lost once more."""
    run.group(0, 5, workers=3, torn=1)
    run.group(3, 4, workers=2)
    run.group(3, run.last, workers=1)
    found = run.audit()
    assert found.steps_twice == 4
    torn = sum(len(run.plan.shard_rows(5, shard)) for shard in range(SHARDS) if shard not in owned_shards(SHARDS, 1, 3))
    assert found.rows_thrown_away == 2 * run.plan.batch_rows(3) + run.plan.batch_rows(4) + torn
    assert found.rows == EPOCHS * run.prepared.num_rows("train")


def test_a_line_that_a_killed_worker_began_is_no_note(run: Run) -> None:
    run.group(0, 5, workers=2)
    run.change("run-0-1000.jsonl", lambda lines: [*lines, lines[-1][:20]])
    run.group(5, run.last, workers=2)
    assert run.audit().rows_thrown_away == 0


def test_a_step_that_no_group_computed_is_noticed(run: Run) -> None:
    run.group(0, 5, workers=2)
    run.group(6, run.last, workers=2)
    with pytest.raises(AuditError, match=r"row \d+ was trained on 0 times"):
        run.audit()


def test_a_group_that_goes_on_where_the_one_before_had_not_ended_its_step_is_noticed(run: Run) -> None:
    """Worker 0's share of step 4 counts for nothing; the next group should have computed it all."""
    run.group(0, 4, workers=2, torn=1)
    run.group(5, run.last, workers=2)
    with pytest.raises(AuditError, match=r"row \d+ was trained on 0 times"):
        run.audit()


def test_a_step_patched_of_two_attempts_is_noticed(run: Run) -> None:
    run.group(0, 5, workers=1)
    run.group(4, 4, workers=2, torn=1)
    run.group(5, run.last, workers=1)
    with pytest.raises(AuditError, match="step 4 of the final history is of two attempts"):
        run.audit()


def test_workers_that_go_on_beside_those_that_replaced_them_are_noticed(run: Run) -> None:
    run.group(0, 5, workers=1)
    run.group(3, run.last, workers=1)
    for shard in range(SHARDS):
        run.note(1000, 0, 6, shard)
    with pytest.raises(AuditError, match=r"step 7 .* begun before the step before"):
        run.audit()


def test_a_row_in_another_place_or_another_shard_is_noticed(run: Run) -> None:
    run.group(0, run.last, workers=1)

    def exchanged(lines: list[str]) -> list[str]:
        first, second = json.loads(lines[0]), json.loads(lines[1])
        first["rows"], second["rows"] = second["rows"], first["rows"]
        return [json.dumps(first) + "\n", json.dumps(second) + "\n", *lines[2:]]

    run.change("run-0-1000.jsonl", exchanged)
    with pytest.raises(AuditError, match=r"step 0, shard 0: rows .* were planned"):
        run.audit()


@pytest.mark.parametrize("edit", [lambda lines: lines[:-1], lambda lines: lines[:-SHARDS]])
def test_a_run_that_did_not_end_is_noticed(run: Run, edit: Callable[[list[str]], list[str]]) -> None:
    run.group(0, run.last, workers=1)
    run.change("run-0-1000.jsonl", edit)
    with pytest.raises(AuditError):
        run.audit()


def test_a_step_that_one_process_did_twice_is_noticed(run: Run) -> None:
    run.group(0, run.last, workers=1)
    run.change("run-0-1000.jsonl", lambda lines: [*lines[:9], lines[8], *lines[9:]])
    with pytest.raises(AuditError, match="comes after"):
        run.audit()


def test_ledgers_of_two_runs_are_refused(run: Run) -> None:
    run.group(0, run.last, workers=1)
    (run.folder / "other-0-1.jsonl").write_text("")
    with pytest.raises(AuditError, match="of several"):
        run.audit()
