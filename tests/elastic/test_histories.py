"""Every kind of model through every history, on real data: the same bits as one worker that nothing befell."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train

import own_models
from audit_ledger import audit
from histories import losses_account_for, resized, robbed, totals_of
from live_runs import (
    DIGITS,
    IMAGES,
    NUMERALS,
    SENTENCES,
    SPOTS,
    STROKES,
    TONES,
    InThread,
    digest,
    fit,
    ignore,
    kill_worker,
    on_disk,
    spec_of,
    wait_until,
    workers_of,
)
from tidegate.data.prepare import prepare
from tidegate.data.prepared import Prepared
from tidegate.errors import TrainingError
from tidegate.spec.run import Spec
from tidegate.training import control
from tidegate.training.checkpoint import Checkpoint
from tidegate.training.fit import Fit
from tidegate.training.monitor import MAX_LOSSES

# Ray warns about its own settings when it copies them.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
CNN = IMAGES | {"model": {"type": "cnn", "channels": [4], "hidden": 16, "dropout": 0.2}}
TRANSFORMER = SENTENCES | {"model": {"type": "transformer", "layers": 1, "width": 8, "heads": 2, "dropout": 0.2}}
OWN = DIGITS | {"name": "own", "model": {"type": "custom", "build": "own_models:Gated", "args": {"width": 24}}}


@dataclass(frozen=True)
class Kind:
    """A spec's document, how many epochs make a run long enough, and a loop of the person's own."""

    document: dict[str, Any]
    epochs: int
    own_loop: bool = False

    def spec(self, workers: int | tuple[int, int]) -> Spec:
        changed = {"epochs": self.epochs, "shards": 4, "checkpoint": {"every_s": 0.5}}
        return on_disk(spec_of(self.document, workers, **changed))

    @property
    def loop(self) -> dict[str, Any]:
        return {"loop": own_models.loop} if self.own_loop else {}


CONV_ATTENTION = IMAGES | {
    "name": "looked-at",
    "data": IMAGES["data"] | {"source": {"path": "digits.parquet"}},
    "model": {"type": "conv_attention", "stem": [4], "width": 8, "heads": 2, "layers": 1, "dropout": 0.2},
}
RECITED = NUMERALS | {
    "name": "recited",
    "data": NUMERALS["data"],
    "model": {"type": "seq2seq", "network": "gru", "layers": 1, "width": 16, "heads": 1, "dropout": 0.2},
}
KINDS = {
    "cnn": Kind(CNN, 80),
    "conv_attention": Kind(CONV_ATTENTION, 40),
    "rnn": Kind(STROKES | {"train": STROKES["train"] | {"group_by_length": True}}, 40),
    "forecast": Kind(SPOTS, 200),
    "transformer": Kind(TRANSFORMER, 200),
    "seq2seq": Kind(NUMERALS, 30),
    "seq2seq of gru": Kind(RECITED, 30),
    "ctc": Kind(TONES, 30),
    "own loop": Kind(OWN, 100, own_loop=True),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, ray_local: None) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def prepared(kind: Kind) -> Prepared:
    return prepare(kind.spec(1), ignore)


@pytest.fixture(scope="module")
def alone(kind: Kind, prepared: Prepared) -> Checkpoint:
    return fit(kind.spec(1), prepared, f"{prepared.folder.name}-alone", **kind.loop)


@pytest.mark.parametrize("workers", [2, 3])
def test_more_workers_make_the_same_weights(
    kind: Kind, prepared: Prepared, alone: Checkpoint, ledger: Path, workers: int
) -> None:
    spec = kind.spec(workers)
    final = fit(spec, prepared, f"{spec.name}-{workers}", **kind.loop)
    assert digest(final) == digest(alone)
    assert final.state["history"] == alone.state["history"]
    found = audit(ledger, prepared, spec)
    assert (found.workers, found.rows_thrown_away) == (workers, 0)


def test_resizes_on_request_make_the_same_weights(
    kind: Kind, prepared: Prepared, alone: Checkpoint, ledger: Path
) -> None:
    spec = kind.spec((1, 3))
    run = f"{spec.name}-resized"
    final = resized(spec, prepared, run, (1, 3, 2, 1), **kind.loop)
    assert digest(final) == digest(alone)
    assert totals_of(run).steps_twice == 0
    assert audit(ledger, prepared, spec).rows_thrown_away == 0


def test_two_workers_and_the_driver_killed_make_the_same_weights(
    kind: Kind, prepared: Prepared, alone: Checkpoint, ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(2**32)
    print(f"the seed of what is killed when: {seed}")
    spec = kind.spec((1, 3))
    run = f"{spec.name}-robbed"
    final, seconds = robbed(spec, run, ledger, random.Random(seed), "own_models:loop" if kind.own_loop else "")
    with capsys.disabled():
        print(f"\n{spec.name}: training again {seconds:.1f} s after its driver was killed")
    assert digest(final) == digest(alone)
    found, totals = audit(ledger, prepared, spec), totals_of(run)
    assert totals.groups == 4
    assert totals.restarts in (2, 3)
    assert losses_account_for(found.steps_twice - totals.steps_twice, losses=3)


class Digits:
    """The digits, trained long enough for many things to happen."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.prepared = prepare(self.spec(1), ignore)

    def spec(self, workers: int | tuple[int, int]) -> Spec:
        return on_disk(spec_of(DIGITS, workers, epochs=self.epochs, checkpoint={"every_s": 0.5}))


def test_twenty_resizes_in_a_row_compute_no_step_twice(ray_local: None, ledger: Path) -> None:
    digits = Digits(epochs=400)
    final = resized(digits.spec((1, 3)), digits.prepared, "twenty", [1, 3, 2] * 6 + [1, 3, 1])
    totals = totals_of("twenty")
    assert totals.resizes in (20, 21)
    assert (totals.groups, totals.restarts, totals.steps_twice) == (totals.resizes + 1, 0, 0)
    found = audit(ledger, digits.prepared, digits.spec((1, 3)))
    assert (found.epochs, found.rows_thrown_away) == (400, 0)
    assert digest(final) == digest(fit(digits.spec(1), digits.prepared, "twenty-alone"))


def test_asks_and_losses_at_awkward_moments_change_nothing(ray_local: None, ledger: Path) -> None:
    """Nothing waits for what was asked before: sizes change while workers start, pauses come while they leave."""
    seed = random.randrange(2**32)
    print(f"the seed of what happens when: {seed}")
    luck, digits = random.Random(seed), Digits(epochs=1200)
    spec = digits.spec((1, 3))

    def resize(run: InThread) -> None:
        control.resize(run.run, luck.randint(1, 3), why="the test")

    def pause(run: InThread) -> None:
        control.pause(run.run, why="the test")
        if luck.random() < 0.5:
            run.until_phase("paused")
        control.resume(run.run)

    def kill(run: InThread) -> None:
        if pids := workers_of(run.run, ledger):
            kill_worker(luck.choice(pids))

    with InThread(spec, digits.prepared, "awkward") as run:
        run.until(lambda: "awkward" in control.going_on())
        for _ in range(12):
            luck.choice([resize, resize, pause, kill])(run)
            if luck.random() < 0.5:
                run.until_phase("training")
            time.sleep(luck.uniform(0, 2))
        final = run.final()
    wait_until(lambda: ray.available_resources().get("CPU") == 8)
    totals = totals_of("awkward")
    found = audit(ledger, digits.prepared, spec)
    assert losses_account_for(found.steps_twice - totals.steps_twice, totals.restarts)
    assert digest(final) == digest(fit(digits.spec(1), digits.prepared, "awkward-alone"))


def test_a_run_that_loses_a_worker_again_and_again_at_one_step_ends(ray_local: None, ledger: Path) -> None:
    digits = Digits(epochs=8)

    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(fit.build())
        for number, batch in enumerate(fit.batches("train")):
            if number == 30 and ray.train.get_context().get_world_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            fit.step(model(batch).square().mean())

    with pytest.raises(TrainingError, match=rf"lost {MAX_LOSSES + 1} times in a row.*worker 1") as caught:
        fit(digits.spec(2), digits.prepared, "hopeless", loop=loop)
    assert "Traceback" not in str(caught.value)
    # One group more when the first was gone before its last step was counted: the second then got one step further.
    assert len(list(ledger.iterdir())) in (2 * (MAX_LOSSES + 1), 2 * (MAX_LOSSES + 2))
    wait_until(lambda: ray.available_resources().get("CPU") == 8)
