"""The ledger: a record of every row a worker trained on, for audits. Off unless TIDEGATE_LEDGER names a directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tidegate import settings
from tidegate.transforms.base import Array


class Ledger:
    """Appends `{"step", "shard", "rows"}` (row numbers of the source) as a JSON line, just before the backward pass."""

    def __init__(self, run: str, worker: int) -> None:
        folder = settings.LEDGER.text()
        self._file = None
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._file = (Path(folder) / f"{run}-{worker}-{os.getpid()}.jsonl").open("a")

    def note(self, step: int, shard: int, rows: Array) -> None:
        if self._file:
            self._file.write(json.dumps({"step": step, "shard": shard, "rows": rows.tolist()}) + "\n")
            self._file.flush()
