"""Test accuracy of the shipped specs on held-out rows: digits over five seeds, movie snippets over ten folds.

A seed decides both the split and the initial weights. Every number is read back from MLflow's records.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of digits; 0 leaves them out")
    parser.add_argument("--folds", type=int, default=10, help="folds of movie snippets; 0 leaves them out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as folder:
        os.environ.update(HOME=folder, TIDEGATE_HOME=f"{folder}/kept", OMP_NUM_THREADS="1")
        from tidegate import cluster, connection

        cluster.up(serve_port=18200, auth="disabled")
        try:
            connection.connect()
            reached = [digits(options.seeds)] if options.seeds else []
            reached += [movie_snippets(options.folds)] if options.folds else []
        finally:
            cluster.down()
    return 0 if all(reached) else 1


def digits(seeds: int) -> bool:
    provide("digits.py")
    accuracies = [accuracy("digits.yaml", f"seed {seed}", {"seed": seed}) for seed in range(seeds)]
    print(f"digits: mean {statistics.mean(accuracies):.4f} (wanted 0.980), least {min(accuracies):.4f} (wanted 0.970)")
    return statistics.mean(accuracies) >= 0.980 and min(accuracies) >= 0.970


def movie_snippets(folds: int) -> bool:
    accuracies = []
    for fold in range(folds):
        provide("movie_snippets.py", "--test-fold", str(fold))
        path = str(Path(os.environ["TIDEGATE_HOME"]) / "data" / f"movie_snippets-fold{fold}.parquet")
        accuracies.append(accuracy("movie_snippets.yaml", f"fold {fold}", {}, path))
    spread = statistics.stdev(accuracies) if folds > 1 else 0.0
    print(f"movie snippets: mean {statistics.mean(accuracies):.4f} (wanted 0.74), deviation {spread:.4f}")
    return statistics.mean(accuracies) >= 0.74


def provide(script: str, *arguments: str) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "datasets" / script), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def accuracy(spec_file: str, label: str, changes: dict[str, Any], source: str | None = None) -> float:
    """Train once, without publishing; the test accuracy that MLflow kept."""
    import tidegate as tg
    from tidegate import tracking
    from tidegate.spec.run import Publish

    spec = tg.load_spec(ROOT / "jobs" / "specs" / spec_file).model_copy(update={**changes, "publish": Publish()})
    if source is not None:
        data = spec.data.model_copy(update={"source": spec.data.source.model_copy(update={"path": source})})
        spec = spec.model_copy(update={"data": data})
    started = time.monotonic()
    run = tg.train(spec, follow=False)
    run.outcome()
    measured = tracking.run(run.name).metrics
    print(
        f"{spec.name} {label}: test {measured['test.accuracy']:.4f}, validation {measured['validation.accuracy']:.4f}, "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )
    return measured["test.accuracy"]


if __name__ == "__main__":
    sys.exit(main())
