"""Training with a checkpoint every 10 s against training with none: samples/s, 2 workers, wanted at least 0.97.

Two networks on the rows of training.py: an MLP of two layers of 2,048, whose checkpoint (weights and the two moments of
the optimizer) is 70 MB, and the CNN of training.py. One run of each, not counted as a pair, tells how many epochs take
`--seconds`; every run then has one epoch more than that, and the first is not counted. The checkpoint at the end of a
run is written on both sides and is not counted either.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from pairs import compare
from training import MODELS, TRAINING_ROWS, Trained, own_cluster, source, spec_of, trained

WANTED = 0.97
EVERY_S = 10.0
NEVER_S = 1e6
NETWORKS: dict[str, dict[str, Any]] = {"wide mlp": {"type": "mlp", "hidden": [2048, 2048]}, "cnn": MODELS["cnn"]}
TRIAL_EPOCHS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=45.0, help="how long each run trains")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds from one checkpoint to the next")
    options = parser.parse_args()
    with own_cluster() as home:
        reached = [measured(home, name, options) for name in options.models]
    return 0 if all(reached) else 1


def measured(home: Path, name: str, options: argparse.Namespace) -> bool:
    def run(epochs: int, every_s: float) -> Trained:
        choices = {"model": NETWORKS[name], "epochs": epochs, "checkpoint_every_s": every_s}
        return trained(spec_of(name.replace(" ", "-"), source(home), **choices))

    trial = run(TRIAL_EPOCHS, NEVER_S)
    epochs = 1 + max(1, math.ceil(options.seconds * trial.samples_per_s / TRAINING_ROWS))
    with_checkpoints: list[Trained] = []

    def ours() -> float:
        with_checkpoints.append(run(epochs, options.every))
        return with_checkpoints[-1].samples_per_s

    def theirs() -> float:
        without = run(epochs, NEVER_S)
        assert without.totals.checkpoints == 0, without.totals
        return without.samples_per_s

    reached = compare(f"checkpoints, {name}", ours, theirs, pairs=options.pairs, wanted=WANTED)
    written = sum(each.totals.checkpoints for each in with_checkpoints)
    stood_still = sum(each.totals.checkpointing_s for each in with_checkpoints)
    seconds = stood_still + sum(each.totals.training_s for each in with_checkpoints)
    print(
        f"checkpoints, {name}: {written} written in {seconds:.0f} s, of which training stood still {stood_still:.2f} s"
    )
    assert written, "no run held a checkpoint: raise --seconds"
    return reached


if __name__ == "__main__":
    sys.exit(main())
