"""A small training on a cluster whose Ray lacks some of the private names that Tidegate takes.

As a script it trains and prints what came of it as JSON. `outcome_without` runs it with some names taken away in every
Python process of the cluster.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from live_runs import DEADLINE_S, DIGITS, InThread, digest, ignore, kill_worker, on_disk, spec_of, workers_of
from local_ray import own_surroundings
from ports import free_port
from tidegate import cluster, connection
from tidegate.cluster_environment import LOOPBACK_FLAG
from tidegate.data.prepare import prepare
from tidegate.errors import TidegateError
from tidegate.serving import deploy

VARIABLE = "NAMES_TAKEN_AWAY"
SITECUSTOMIZE = f"""
import os
from tidegate.ray_internals import NAMES
for name in os.environ["{VARIABLE}"].split():
    NAMES[name] = NAMES[name]._replace(attribute="taken_away")
"""


def outcome_without(names: Iterable[str], folder: Path) -> dict[str, Any]:
    """`digest` of the weights, `restarts`, what was `said` and the `warnings`; `resize` and `endpoints`: how they were
    refused, empty when they were not."""
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    # What tidegate sets where Ray was not imported before it joins; this script has imported it.
    environment = {**os.environ, **LOOPBACK_FLAG, "PYTHONPATH": str(folder), VARIABLE: " ".join(names)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=4 * DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(record.getMessage())


def main() -> None:
    warnings = Warnings()
    logging.getLogger("tidegate").addHandler(warnings)
    with own_surroundings() as folder:
        try:
            cluster.up(cpus=4, gpus=0, serve_port=free_port(), auth="disabled")
            connection.connect()
            result = train(folder / "ledger") | {"endpoints": refusal_of(deploy.serve_url)}
        finally:
            cluster.down()
    print(json.dumps(result | {"warnings": warnings.sentences}))


def train(ledger: Path) -> dict[str, Any]:
    """One run of up to two workers that is asked to change its size and loses a worker."""
    os.environ["TIDEGATE_LEDGER"] = str(ledger)
    spec = on_disk(spec_of(DIGITS, (1, 2), epochs=60, checkpoint={"every_s": 0.5}))
    said: list[str] = []
    with InThread(spec, prepare(spec, ignore), "without", say=said.append) as run:
        first = run.until_group(1).progress.workers
        refused = refusal_of(lambda: run.resize(3 - first))
        groups = run.until_group(1).totals.groups
        kill_worker(workers_of("without", ledger)[-1])
        run.until_group(groups + 1)
        final = run.final()
    return {"digest": digest(final), "resize": refused, "said": said, "restarts": run.news[-1].totals.restarts}


def refusal_of(ask: Any) -> str:
    """What a feature says that is off; empty when it is on."""
    try:
        ask()
    except TidegateError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main()
