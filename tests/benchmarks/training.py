"""Training through Ray Train and the ray_data feed against torchrun DDP on tensors in memory: samples/s, 2 workers.

Both sides train the same network on 10,000 rows of 28 x 28 pixels, 128 rows a worker, for five epochs after one to
warm up; Tidegate with 2 shards. Start-up is not counted on either side.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pairs import compare

PEERS = Path(__file__).parent / "peers"
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"type": "mlp", "hidden": [128]},
    "cnn": {"type": "cnn", "channels": [16, 32], "hidden": 128},
}
WANTED = {"mlp": 0.55, "cnn": 0.8}
EPOCHS = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as folder:
        home = Path(folder)
        os.environ.update(HOME=folder, TIDEGATE_HOME=str(home / "kept"), RAY_AUTH_MODE="disabled", OMP_NUM_THREADS="1")
        from tidegate import cluster, connection

        cluster.up(serve_port=18000, auth="disabled")
        try:
            connection.connect()
            reached = [
                compare(
                    name, lambda name=name: ours(name, home), lambda name=name: theirs(name), **wanted(name, options)
                )
                for name in options.models
            ]
        finally:
            cluster.down()
    return 0 if all(reached) else 1


def wanted(name: str, options: argparse.Namespace) -> dict[str, Any]:
    return {"pairs": options.pairs, "wanted": WANTED[name]}


def ours(name: str, home: Path) -> float:
    """Samples/s of a whole run's epochs after the first."""
    import secrets

    from tidegate.data.prepare import prepare
    from tidegate.training import trainer

    spec = spec_of(name, source(home))
    speeds: list[float] = []
    trainer.fit(
        spec,
        prepare(spec, lambda line: None),
        f"bench-{secrets.token_hex(4)}",
        on_news=lambda news: speeds.extend(epoch["rows_per_s"] for epoch in news.epochs),
        say=lambda line: None,
    )
    assert len(speeds) == EPOCHS, speeds
    return (EPOCHS - 1) / sum(1 / speed for speed in speeds[1:])


def theirs(name: str) -> float:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        str(PEERS / "torchrun_ddp.py"),
        name,
    ]
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
        rows = 10_200
        pixels = pa.array(generator.random(rows * 784, np.float32))
        split = ["train"] * 10_000 + ["validation"] * 100 + ["test"] * 100
        columns = {
            "x": pa.FixedSizeListArray.from_arrays(pixels, 784),
            "y": generator.integers(0, 10, rows),
            "split": split,
        }
        pq.write_table(pa.table(columns), path)
    return path


def spec_of(name: str, path: Path) -> Any:
    from tidegate.spec.document import parse
    from tidegate.spec.run import Spec

    document = {
        "name": name,
        "data": {
            "source": {"path": str(path)},
            "inputs": {"x": {"type": "image", "size": [28, 28], "max_value": 1.0}},
            "target": {"column": "y", "type": "category"},
            "split": {"column": "split"},
        },
        "model": MODELS[name],
        "train": {
            "epochs": EPOCHS,
            "global_batch": 256,
            "shards": 2,
            "optimizer": {"type": "adam"},
            "workers": {"min": 2, "max": 2},
        },
    }
    return parse(Spec, document, source="the benchmark")


if __name__ == "__main__":
    sys.exit(main())
