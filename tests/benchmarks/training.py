"""Training on two workers against torchrun DDP on tensors in memory: samples/s of an MLP and a CNN.

Both sides train the same network on 10,000 rows of 28 x 28 pixels, 128 rows a worker, for five epochs after one to
warm up. Start-up is not counted on either side. Measured for each network:

    local, 2 shards        workers read the prepared files; as many passes a step as the peer has
    ray_data, 2 shards     rows come through Ray Data
    local, 8 shards        four passes a worker and step
    fast, 8 shards         the same, computed in one pass a worker (`train.reduction: fast`)
"""

from __future__ import annotations

import argparse
import importlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairs import compare

PEERS = Path(__file__).parent / "peers"
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"type": "mlp", "hidden": [128]},
    "cnn": {"type": "cnn", "channels": [16, 32], "hidden": 128},
}
TRAINING_ROWS = 10_000
EPOCHS = 6
Case = tuple[str, dict[str, Any], float | None]
CASES: dict[str, list[Case]] = {
    "mlp": [
        ("local, 2 shards", {}, 0.95),
        ("ray_data, 2 shards", {"feed": "ray_data"}, None),
        ("local, 8 shards", {"shards": 8}, None),
        ("fast, 8 shards", {"shards": 8, "reduction": "fast"}, 0.95),
    ],
    "cnn": [
        ("local, 2 shards", {}, 0.95),
        ("ray_data, 2 shards", {"feed": "ray_data"}, 0.85),
        ("local, 8 shards", {"shards": 8}, None),
        ("fast, 8 shards", {"shards": 8, "reduction": "fast"}, 0.95),
    ],
}
"""For each network: a name, what the spec says, and the ratio wanted (None: it is only reported)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--only", default="", help="measure only what has this in its name")
    options = parser.parse_args()
    with own_cluster() as home:
        reached = [
            compare(
                f"{model}, {name}",
                lambda model=model, choices=choices: trained(spec_of(model, source(home), **choices)).samples_per_s,
                lambda model=model: peer(model),
                pairs=options.pairs,
                wanted=wanted,
            )
            for model in options.models
            for name, choices, wanted in CASES[model]
            if options.only in name
        ]
    return 0 if all(reached) else 1


@contextmanager
def own_cluster(cpus: int | None = None) -> Iterator[Path]:
    """A local cluster of so many logical CPUs, joined, in a home of its own; afterwards nothing of either is left."""
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as folder:
        os.environ.update(HOME=folder, TIDEGATE_HOME=f"{folder}/kept", RAY_AUTH_MODE="disabled", OMP_NUM_THREADS="1")
        from tidegate import cluster, connection

        try:
            cluster.up(cpus=cpus, serve_port=18000, auth="disabled")
            connection.connect()
            importlib.import_module("ray.data")
            connection.quiet()
            # After Ray, which handles it by ending at once.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            yield Path(folder)
        finally:
            cluster.down()


@dataclass(frozen=True)
class Trained:
    """What was seen of a run: samples/s of each epoch after the first, and tidegate's own account of its history."""

    speeds: Sequence[float]
    totals: Any

    @property
    def samples_per_s(self) -> float:
        return len(self.speeds) / sum(1 / speed for speed in self.speeds)


def trained(spec: Any) -> Trained:
    """Train from the start to the end; the run and its checkpoints are removed."""
    from tidegate import settings
    from tidegate.data.prepare import prepare
    from tidegate.training import trainer

    name, speeds, totals = f"bench-{secrets.token_hex(4)}", [], []

    def note(news: Any) -> None:
        speeds.extend(epoch["rows_per_s"] for epoch in news.epochs)
        totals.append(news.totals)

    try:
        trainer.fit(spec, prepare(spec, lambda line: None), name, on_news=note, say=lambda line: None)
    finally:
        shutil.rmtree(settings.home() / "runs" / name, ignore_errors=True)
    assert len(speeds) == spec.train.epochs > 1, speeds
    return Trained(speeds[1:], totals[-1])


def peer(model: str) -> float:
    script = PEERS / "torchrun_ddp.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), model]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(printed.split()[1])


def source(home: Path) -> Path:
    """Random pixels, as the peer has: 10,000 training rows and a few that are only validated."""
    path = home / "pixels.parquet"
    if not path.exists():
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        generator = np.random.default_rng(0)
        rows = TRAINING_ROWS + 200
        pixels = pa.array(generator.random(rows * 784, np.float32))
        split = ["train"] * TRAINING_ROWS + ["validation"] * 100 + ["test"] * 100
        columns = {
            "x": pa.FixedSizeListArray.from_arrays(pixels, 784),
            "y": generator.integers(0, 10, rows),
            "split": split,
        }
        pq.write_table(pa.table(columns), path)
    return path


def spec_of(
    name: str,
    path: Path,
    *,
    model: dict[str, Any] | None = None,
    feed: str = "local",
    workers: tuple[int, int] = (2, 2),
    shards: int = 2,
    epochs: int = EPOCHS,
    reduction: str = "ordered",
    checkpoint_every_s: float = 60.0,
) -> Any:
    """A run on the peer's rows. Without `model` it is the peer's network of this name; `workers` are least and most."""
    from tidegate.spec.document import parse
    from tidegate.spec.run import Spec

    document = {
        "name": name,
        "data": {
            "source": {"path": str(path)},
            "inputs": {"x": {"type": "image", "size": [28, 28], "max_value": 1.0}},
            "target": {"column": "y", "type": "category"},
            "split": {"column": "split"},
            "feed": feed,
        },
        "model": model or MODELS[name],
        "train": {
            "epochs": epochs,
            "global_batch": 256,
            "shards": shards,
            "reduction": reduction,
            "optimizer": {"type": "adam"},
            "checkpoint": {"every_s": checkpoint_every_s},
            "workers": {"min": workers[0], "max": workers[1]},
        },
    }
    return parse(Spec, document, source="the benchmark")


if __name__ == "__main__":
    sys.exit(main())
