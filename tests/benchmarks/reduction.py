"""The ordered reduction, whose result is the same on any workers, against the fast one: samples/s, 2 and 4 workers.

First with as many shards as workers. Each worker then makes one pass over its rows in either reduction, so that only
the adding of gradients differs: a fixed tree against one all-reduce. The ordered reduction stays the default unless
this alone costs more than 5%.

Then with 8 shards. The ordered reduction makes a pass a shard, 4 or 2 on each worker; the fast one makes one. This is
reported: how much the passes cost depends on the network and on its rows.

The networks and rows are those of training.py, 256 rows a step; start-up and the first epoch are not counted. With
fewer cores than workers, workers share cores on both sides alike.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pairs import compare
from training import MODELS, own_cluster, source, spec_of, trained

WANTED = 0.95
EPOCHS = {"mlp": 25, "cnn": 8}
"""Ten seconds or so of each network."""
WORKERS = (2, 4)
SHARDS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--workers", nargs="+", type=int, choices=WORKERS, default=list(WORKERS))
    parser.add_argument("--epochs", type=int, help="instead of 25 of the mlp and 8 of the cnn")
    options = parser.parse_args()
    with own_cluster() as home:
        alone = {
            (model, workers): ordered_to_fast(home, model, workers, workers, options, WANTED)
            for model in options.models
            for workers in options.workers
        }
        for model in options.models:
            for workers in options.workers:
                ordered_to_fast(home, model, workers, SHARDS, options, None)
    costly = [f"{model} on {workers} workers" for (model, workers), reached in alone.items() if not reached]
    if costly:
        print(f"reduction: the ordered one alone costs over 5% with {', '.join(costly)}: reconsider the default")
        return 1
    print("reduction: the ordered one alone costs 5% at most everywhere: it stays the default")
    return 0


def ordered_to_fast(
    home: Path, model: str, workers: int, shards: int, options: argparse.Namespace, wanted: float | None
) -> bool:
    def speed(reduction: str) -> float:
        spec = spec_of(
            model,
            source(home),
            workers=(workers, workers),
            shards=shards,
            epochs=options.epochs or EPOCHS[model],
            reduction=reduction,
        )
        return trained(spec).samples_per_s

    passes = f"{shards // workers} pass{'es' * (shards > workers)} to 1"
    return compare(
        f"{model}, {workers} workers, {shards} shards, {passes}",
        lambda: speed("ordered"),
        lambda: speed("fast"),
        pairs=options.pairs,
        wanted=wanted,
    )


if __name__ == "__main__":
    sys.exit(main())
