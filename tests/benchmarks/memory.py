"""Private memory of a worker that trains on 4 GB of prepared rows against one on 0.1 GB: wanted at most 1.1 times.

Both take the same number of steps through the local feed, across several windows of files of the large dataset, and
train a small network on 784 numbers a row. Counted are the pages of the process that are its own: what it has written
to, and no page of a file. The largest of the sizes seen on the way counts, not the last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pairs import judged, shown

WANTED = 1.1
WIDTH, BATCH, SHARDS = 784, 256, 2
LOOK_EVERY = 50
"""Steps between two looks at the memory."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--small", type=float, default=0.1, help="GB")
    parser.add_argument("--large", type=float, default=4.0, help="GB")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(worker(options.worker, options.steps))
        return 0
    with tempfile.TemporaryDirectory(prefix="tg-") as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        write(small, options.small)
        write(large, options.large)
        name = f"MiB at {options.large:g} and {options.small:g} GB"
        ratios = [
            shown(name, number, *(measured(one, options.steps) for one in (large, small)), digits=1)
            for number in range(1, options.pairs + 1)
        ]
    return 0 if judged("memory", ratios, at_most=WANTED) else 1


def measured(folder: Path, steps: int) -> float:
    """MiB of a worker process."""
    command = [sys.executable, __file__, "--worker", str(folder), "--steps", str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout) / 2**20


def write(folder: Path, gigabytes: float) -> None:
    """A prepared dataset of random rows, in files as large as prepare makes them."""
    import numpy as np

    from tidegate.data.prepare import FILE_BYTES
    from tidegate.data.prepared import FORMAT, MANIFEST, ROW, TARGET, write_arrays

    folder.mkdir()
    generator = np.random.default_rng(0)
    rows_per_file = FILE_BYTES // (16 + 4 * WIDTH)
    entries = []
    for number in range(max(1, round(gigabytes * 1e9 / FILE_BYTES))):
        name = f"train-{number:05d}.arrow"
        arrays = {
            ROW: np.arange(rows_per_file) + number * rows_per_file,
            TARGET: generator.integers(0, 10, rows_per_file),
            "x": generator.random((rows_per_file, WIDTH), np.float32),
        }
        entries.append({"name": name, "rows": rows_per_file, "bytes": write_arrays(folder / name, arrays)})
    number = {"type": "number", "length": WIDTH, "missing": "refuse"}
    state = number | {"fill": [0.0] * WIDTH, "shift": [0.0] * WIDTH, "scale": [1.0] * WIDTH}
    manifest = {
        "format": FORMAT,
        "fingerprint": "made for a measurement",
        "columns": {"x": state},
        "target": {"column": "y", "state": {"type": "category", "classes": list("0123456789")}},
        "splits": {"train": entries, "validation": [], "test": []},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def worker(folder: Path, steps: int) -> int:
    """Train for so many steps; the most private memory seen, in bytes."""
    import torch
    from torch import nn

    from tidegate.data.local_feed import LocalFeed
    from tidegate.data.plan import Plan
    from tidegate.data.prepared import TARGET, open_folder

    torch.set_num_threads(1)
    torch.manual_seed(0)
    prepared = open_folder(folder)
    plan = Plan(prepared.rows_per_file("train"), 0, BATCH, SHARDS)
    model = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    most = 0
    for step, batch in LocalFeed(prepared, plan, start=0, stop=steps, worker=0, workers=1, work=None):
        optimizer.zero_grad()
        for arrays in batch.values():
            x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays[TARGET])
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % LOOK_EVERY == 0 or step == steps - 1:
            most = max(most, private_bytes())
    return most


def private_bytes() -> int:
    """Memory of this process that no file stands behind."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/smaps_rollup names no anonymous memory")


if __name__ == "__main__":
    sys.exit(main())
