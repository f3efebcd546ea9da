"""What a worker needs to know to train: the spec, where the data is and where checkpoints go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidegate.data.lengths import FileLengths
from tidegate.data.plan import Plan
from tidegate.data.prepared import Prepared, open_folder
from tidegate.models.code import Code
from tidegate.spec.run import Spec


@dataclass(frozen=True)
class Job:
    """One training run, as it travels from the driver to the workers."""

    spec: Spec
    prepared_folder: Path
    run_folder: Path
    checkpoints: str
    """Folder or URI of the run's checkpoints."""
    identity: str
    """What decides the model: a checkpoint of another identity is not this run's."""
    monitor: Any
    """Handle of the run's Monitor actor."""
    code: Code
    """Sources of the person's own model."""
    loop: Callable[[Any], None] | None = None
    """The person's own loop; None for Tidegate's."""
    ledger: str = ""
    """Directory of the ledger; empty for none."""

    @property
    def name(self) -> str:
        return self.run_folder.name

    def prepared(self) -> Prepared:
        return open_folder(self.prepared_folder)


def plan_of(spec: Spec, prepared: Prepared) -> Plan:
    """The plan of a spec on prepared data."""
    rows = prepared.rows_per_file("train")
    batch = sum(rows) if spec.train.global_batch == "all" else int(spec.train.global_batch)
    lengths = FileLengths(tuple(prepared.files("train")), rows) if spec.train.group_by_length else None
    return Plan(rows, spec.seed, batch, spec.train.shards, lengths=lengths)


def total_steps(spec: Spec, plan: Plan) -> int:
    return spec.train.epochs * plan.steps_per_epoch
