"""The ledger: a record of every row a worker trained on, for audits. Off unless TIDEGATE_LEDGER names a directory.

The driver reads the setting, so that it need not be in the environment of every node.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from tidegate.transforms.base import Array


class Ledger:
    """Appends `{"step", "shard", "rows", "at"}` as a JSON line, just before the backward pass.

    `rows` are row numbers of the source. `at` is the time in nanoseconds since the epoch: where workers were lost and a
    step was computed again, the later note is the one that counts.
    """

    def __init__(self, folder: str, run: str, worker: int) -> None:
        """`folder` is a path that this worker can write to; empty for no ledger."""
        self._file: Path | None = None
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._file = Path(folder) / f"{run}-{worker}-{os.getpid()}.jsonl"

    def note(self, step: int, shard: int, rows: Array) -> None:
        if self._file:
            with self._file.open("a") as file:
                note = {"step": step, "shard": shard, "rows": rows.tolist(), "at": time.time_ns()}
                file.write(json.dumps(note) + "\n")
