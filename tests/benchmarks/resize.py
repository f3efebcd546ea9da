"""Changing the size of a run, 1 -> 2 -> 1 workers: seconds from the ask to the first step at the new size.

One long run of the CNN of training.py is asked again and again. Each resize is paired with a bare start of the new
size on the same cluster: as many Ray actors that import torch, ray.train and ray.train.torch, form a gloo group and add
up one tensor. That is what any restart of workers has to do; wanted is a median of at most 1.3 times its time. The run
takes no steps during a bare start, so that neither is in the other's way.

By phase: from the ask to the durable checkpoint, to the start of the new workers' loop, to the end of their first step.
No step is computed twice; the run's own account of that is checked.

Then Ray Train's own elastic training of an equal network (peers/ray_train_elastic.py says how it is made to resize, and
that it is set to notice fast). It has no checkpoint for the purpose: its steps since the last one, one every 200 steps,
are computed again. So counted is the time to the first step that is new, and beside it the first step of all. Fewer
repetitions; these are a run of their own, so only medians are set side by side.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pairs import judged, shown
from training import PEERS, own_cluster, source, spec_of

WANTED = 1.3
SIZES = (2, 1)
SETTLED_STEPS = 40
"""Steps of a group before it is asked again."""
AT_MOST_S = 300.0
NAMES = {1: "resize 2 -> 1", 2: "resize 1 -> 2"}
Seconds = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9, help="of each kind")
    parser.add_argument("--raw", type=int, default=5, help="resizes of each kind of Ray Train's own; 0 leaves them out")
    parser.add_argument("--raw-checkpoint-steps", type=int, default=200, help="between two checkpoints of Ray Train's")
    options = parser.parse_args()
    with own_cluster() as home:
        ours = {size: [] for size in SIZES}
        reached = measured(home, options.pairs, ours)
        raw = raw_resizes(options.raw, options.raw_checkpoint_steps) if options.raw else []
    for size in SIZES if raw else ():
        tell_raw(size, [each for each in raw if each["size"] == size], ours[size])
    return 0 if reached else 1


def measured(home: Path, pairs: int, ours: dict[int, list[Seconds]]) -> bool:
    """Pairs of both kinds; the phases of ours are added to `ours`. Whether both medians are as wanted."""
    from peers import bare_start

    bare: dict[int, list[Seconds]] = {size: [] for size in SIZES}
    ratios: dict[int, list[float]] = {size: [] for size in SIZES}
    with Run(home) as run:
        # Once unmeasured: what is read from disk for the first time is not what is compared.
        run.resized(1)
        run.held(functools.partial(bare_start.start, 1))
        for number in range(1, pairs + 1):
            for size in SIZES:
                ours[size].append(run.resized(size))
                bare[size].append(run.held(functools.partial(bare_start.start, size)))
                mine, other = ours[size][-1]["first step"], bare[size][-1]["ready"]
                ratios[size].append(shown(NAMES[size], number, mine, other, digits=2))
        run.refuse_repeated_steps()
    for size in SIZES:
        print(f"{NAMES[size]}: ours, {medians(ours[size])}")
        print(f"{NAMES[size]}: bare start, {medians(bare[size])}")
    reached = [judged(NAMES[size], ratios[size], at_most=WANTED) for size in SIZES]
    return all(reached)


def held_loop(gate: Path, fit: Any) -> None:
    """Tidegate's own loop, but no step is taken while the file `gate` is there."""
    model, _ = fit.prepare(fit.build())
    loss_of = fit.objective()
    for batch in fit.batches("train"):
        while gate.exists():
            time.sleep(0.02)
        fit.step(*loss_of(model(batch), batch[fit.target.column]))


class Run:
    """A run that goes on until the end of the block."""

    def __init__(self, home: Path, workers: tuple[int, int] = (1, 2)) -> None:
        self.name, self.gate = f"bench-{secrets.token_hex(4)}", home / "gate"
        self.spec = spec_of("cnn", source(home), workers=workers, shards=workers[1], epochs=1_000_000)
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._train, daemon=True)

    def __enter__(self) -> Run:
        self.thread.start()
        self.settle()
        return self

    def __exit__(self, *_: object) -> None:
        from tidegate.training import control

        if self.thread.is_alive():
            control.stop(self.name, why="measured")
            self.thread.join(AT_MOST_S)

    def _train(self) -> None:
        from tidegate.data.prepare import prepare
        from tidegate.errors import StoppedError
        from tidegate.training import trainer

        try:
            prepared = prepare(self.spec, lambda line: None)
            loop = functools.partial(held_loop, self.gate)
            trainer.fit(self.spec, prepared, self.name, on_news=lambda news: None, say=lambda line: None, loop=loop)
        except StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self.failure = error

    def resized(self, size: int) -> Seconds:
        """Ask for `size` workers, and wait until they work on; the seconds from the ask to the end of each phase."""
        from tidegate.training import control

        before = len(control.history(self.name))
        control.resize(self.name, size, why="measured")
        events = self.wait(lambda: found if len(found := control.history(self.name)[before:]) >= 4 else None)
        assert [what for what, _ in events] == ["asked", "saved", "started", "first_step"], events
        asked, saved, started, first_step = (at for _, at in events)
        self.settle(size)
        return {"durable checkpoint": saved - asked, "loop started": started - asked, "first step": first_step - asked}

    def held(self, deed: Callable[[], Seconds]) -> Seconds:
        """Do something while the workers wait; afterwards they work on."""
        self.gate.touch()
        try:
            return deed()
        finally:
            self.gate.unlink()
            self.settle()

    def refuse_repeated_steps(self) -> None:
        from tidegate.training import control

        news = control.status(self.name)
        assert news is not None
        assert news.totals.steps_twice == 0, news.totals
        print(f"resize: {news.totals.resizes} resizes, {news.progress.step} steps, none of them computed twice")

    def settle(self, size: int | None = None) -> None:
        """Returns when some more steps are done, by `size` workers."""
        from tidegate.training import control

        start: int | None = None

        def steps() -> bool | None:
            nonlocal start
            news = control.status(self.name) if self.name in control.going_on() else None
            if news is None or news.phase != "training" or size not in (None, news.progress.workers):
                return None
            start = news.progress.step if start is None else start
            return news.progress.step >= start + SETTLED_STEPS or None

        self.wait(steps)

    def wait(self, look: Callable[[], Any]) -> Any:
        """What `look` finds, once it finds something."""
        until = time.monotonic() + AT_MOST_S
        while (found := look()) is None:
            if self.failure is not None:
                raise self.failure
            if time.monotonic() > until or not self.thread.is_alive():
                raise TimeoutError(f"run {self.name} does not get on")
            time.sleep(0.2)
        return found


def raw_resizes(count: int, checkpoint_steps: int) -> list[dict[str, Any]]:
    """Resizes of Ray Train's own, as its script tells them."""
    from tidegate import cluster

    here = cluster.current()
    assert here is not None
    script = PEERS / "ray_train_elastic.py"
    command = [sys.executable, str(script), f"--resizes={count}", f"--checkpoint-steps={checkpoint_steps}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | cluster.environment(here)
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr[-4000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def tell_raw(size: int, raw: list[dict[str, Any]], ours: list[Seconds]) -> None:
    """The medians of Ray Train's own resizes, and of them to ours."""
    keys = {
        "last step of the old workers": "old_last_step",
        "loop started": "started",
        "first step": "first_step",
        "first new step": "first_new_step",
    }
    phases = [{name: each[key] for name, key in keys.items()} for each in raw]
    print(f"{NAMES[size]}: Ray Train's own, n={len(raw)}, {medians(phases)}")
    twice = statistics.median(each["steps_twice"] for each in raw)
    mine = statistics.median(each["first step"] for each in ours)
    first, new = (statistics.median(each[key] for each in raw) / mine for key in ("first_step", "first_new_step"))
    print(
        f"{NAMES[size]}: Ray Train's own to ours, of medians: first new step {new:.2f}, first step {first:.2f}; "
        f"it computed {twice:.0f} steps twice, ours none"
    )


def medians(found: list[Seconds]) -> str:
    """The median of each phase, in seconds from the ask."""
    middle = {name: statistics.median(each[name] for each in found) for name in found[0]}
    return "seconds to: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in middle.items())


if __name__ == "__main__":
    sys.exit(main())
