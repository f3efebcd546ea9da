"""What a worker needs to know to train: the spec, where the data is and where checkpoints go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidegate.data.plan import Plan
from tidegate.data.prepared import Prepared, open_folder
from tidegate.spec.run import Spec


@dataclass(frozen=True)
class Job:
    """One training run, as it travels from the driver to the workers."""

    spec: Spec
    prepared_folder: Path
    run_folder: Path
    monitor: Any
    """Handle of the run's Monitor actor."""
    checkpoint_every_s: float
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
    return Plan(rows, spec.seed, batch, spec.train.shards)


def total_steps(spec: Spec, plan: Plan) -> int:
    return spec.train.epochs * plan.steps_per_epoch
