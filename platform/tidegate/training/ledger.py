"""The ledger: a record of every row a worker trained on, for audits. Off unless TIDEGATE_LEDGER names a directory.

The driver reads the setting, so that it need not be in the environment of every node.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tidegate.transforms.base import Array


class Ledger:
    """Appends `{"step", "shard", "rows"}` (row numbers of the source) as a JSON line, just before the backward pass."""

    def __init__(self, folder: str, run: str, worker: int) -> None:
        """`folder` is a path that this worker can write to; empty for no ledger."""
        self._file: Path | None = None
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._file = Path(folder) / f"{run}-{worker}-{os.getpid()}.jsonl"

    def note(self, step: int, shard: int, rows: Array) -> None:
        if self._file:
            with self._file.open("a") as file:
                file.write(json.dumps({"step": step, "shard": shard, "rows": rows.tolist()}) + "\n")
