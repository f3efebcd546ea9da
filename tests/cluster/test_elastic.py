"""Elastic training on a real local Ray: resized, paused, stopped, robbed of its processes, and the same in the end.

The long matrix of models, feeds and histories is in tests/elastic.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train

from audit_ledger import audit
from histories import losses_account_for, resized, robbed, totals_of
from live_runs import (
    DIGITS,
    InThread,
    digest,
    fit,
    folder_of,
    ignore,
    killer,
    on_disk,
    spec_of,
    steps_done,
    wait_until,
)
from tidegate.data.prepare import prepare
from tidegate.data.prepared import Prepared
from tidegate.errors import CheckpointError, ConflictError, NotFoundError, SpecError, StoppedError, TrainingError
from tidegate.spec.run import Spec
from tidegate.training import control
from tidegate.training.checkpoint import Checkpoint, Checkpoints
from tidegate.training.fit import Fit

# Ray warns about its own settings when it copies them.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
EPOCHS = 100
STEPS = EPOCHS * 24
AGAIN_S = 60
"""Training goes on so many seconds after its driver was killed: 20 on a machine that does nothing else."""


def digits(workers: int | tuple[int, int], **train: Any) -> Spec:
    options: dict[str, Any] = {"epochs": EPOCHS, "checkpoint": {"every_s": 0.5}} | train
    return on_disk(spec_of(DIGITS, workers, **options))


@pytest.fixture(scope="module")
def prepared(ray_local: None) -> Prepared:
    return prepare(digits(1), ignore)


@pytest.fixture(scope="module")
def alone(prepared: Prepared) -> Checkpoint:
    """The digits trained by one worker, undisturbed."""
    return fit(digits(1), prepared, "alone")


def test_a_run_resized_on_request_computes_no_step_twice(alone: Checkpoint, prepared: Prepared, ledger: Path) -> None:
    spec = digits((1, 3))
    final = resized(spec, prepared, "resized", sizes=(1, 3, 2, 1))
    assert digest(final) == digest(alone)
    assert final.state["history"] == alone.state["history"]
    totals = totals_of("resized")
    # One more when the first group had begun with three already.
    assert totals.resizes in (3, 4)
    assert (totals.groups, totals.restarts, totals.steps_twice) == (totals.resizes + 1, 0, 0)
    found = audit(ledger, prepared, spec)
    assert (found.epochs, found.rows_thrown_away) == (EPOCHS, 0)
    assert found.rows == EPOCHS * prepared.num_rows("train")


def test_random_kills_of_workers_and_of_the_driver_change_nothing(
    alone: Checkpoint, prepared: Prepared, ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(2**32)
    print(f"the seed of what is killed when: {seed}")
    spec = digits((1, 3))
    final, seconds = robbed(spec, "robbed", ledger, random.Random(seed))
    with capsys.disabled():
        print(f"\ntraining again {seconds:.1f} s after its driver was killed")
    assert seconds < AGAIN_S
    assert digest(final) == digest(alone)
    assert final.state["history"] == alone.state["history"]
    found, totals = audit(ledger, prepared, spec), totals_of("robbed")
    assert found.rows == EPOCHS * prepared.num_rows("train")
    assert (totals.groups, totals.resizes) == (4, 0)
    # That of the driver is known from the steps that were computed again.
    assert totals.restarts in (2, 3)
    assert losses_account_for(found.steps_twice - totals.steps_twice, losses=3)
    assert found.rows_thrown_away > 0


def test_a_paused_run_gives_everything_back_and_a_stopped_one_goes_on_by_its_name(
    alone: Checkpoint, prepared: Prepared, ledger: Path
) -> None:
    spec = digits((1, 2))
    with InThread(spec, prepared, "paused") as run:
        run.until_step(100)
        with pytest.raises(SpecError, match=r"3 workers.*1 to 2"):
            control.resize("paused", 3, why="the test")
        with pytest.raises(ConflictError, match="trained by another process"):
            fit(spec, prepared, "paused")
        control.pause("paused", why="the test")
        run.until_phase("paused")
        run.until(lambda: ray.available_resources().get("CPU") == 8)
        paused_at = steps_done("paused")
        with pytest.raises(ConflictError, match="trained by another process"):
            fit(spec, prepared, "paused")
        assert steps_done("paused") == paused_at
        control.resume("paused")
        run.until_step(paused_at + 100)
        control.stop("paused", why="the test")
        with pytest.raises(StoppedError, match="stopped at step") as stopped:
            run.final()
    assert "tidegate resume paused" in stopped.value.remedy
    assert "paused" not in control.going_on()
    for ask in (control.pause, control.stop):
        with pytest.raises(NotFoundError, match="does not go on"):
            ask("paused", why="the test")
    stopped_at = steps_done("paused")
    assert paused_at + 100 <= stopped_at < STEPS
    final = fit(spec, prepared, "paused")
    assert digest(final) == digest(alone)
    assert audit(ledger, prepared, spec).rows_thrown_away == 0
    totals = totals_of("paused")
    assert (totals.groups, totals.pauses, totals.restarts, totals.steps_twice) == (3, 1, 0, 0)


def test_a_terminated_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    alone: Checkpoint, prepared: Prepared, ledger: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, handler = digits(2, checkpoint={"every_steps": 100, "keep": 2}), signal.getsignal(signal.SIGTERM)

    def this_process() -> int | None:
        heeded = signal.getsignal(signal.SIGTERM) is not handler
        return os.getpid() if heeded and steps_done("terminated") >= 330 else None

    with killer(this_process, signal.SIGTERM), pytest.raises(StoppedError, match="stopped at step"):
        fit(spec, prepared, "terminated")
    assert signal.getsignal(signal.SIGTERM) is handler
    checkpoints = Checkpoints(str(folder_of("terminated") / "checkpoints"))
    older, newest = checkpoints.steps()
    assert older == newest // 100 * 100 - (newest % 100 == 0) * 100
    (weights,) = (folder_of("terminated") / "checkpoints" / f"step-{newest:09d}").glob("model-*")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with caplog.at_level("WARNING"):
        final = fit(spec, prepared, "terminated")
    assert f"step-{newest:09d} is damaged" in caplog.text
    assert "going back to the one before" in caplog.text
    assert digest(final) == digest(alone)
    assert totals_of("terminated").steps_twice == newest - older
    assert audit(ledger, prepared, spec).steps_twice == newest - older


def test_a_checkpoint_of_another_spec_is_not_gone_on_from(alone: Checkpoint, prepared: Prepared) -> None:
    other = digits(1, optimizer={"type": "adamw", "lr": 0.004})
    with pytest.raises(CheckpointError, match="belong to another spec or to other data") as caught:
        fit(other, prepared, "alone")
    assert "another name" in caught.value.remedy
    assert digest(fit(digits((1, 3)), prepared, "alone")) == digest(alone), "the number of workers is no other spec"


def test_a_loop_that_raises_on_one_worker_ends_the_run_with_the_place(prepared: Prepared, ledger: Path) -> None:
    def loop(fit: Fit) -> None:
        model, _ = fit.prepare(fit.build())
        for number, batch in enumerate(fit.batches("train")):
            if number == 20 and ray.train.get_context().get_world_rank() == 1:
                raise ValueError("nothing to be done\nand more")
            fit.step(model(batch).square().mean())

    with pytest.raises(TrainingError) as caught:
        fit(digits(2), prepared, "raising", loop=loop)
    line = loop.__code__.co_firstlineno + 4
    assert caught.value.happened == f"the loop raised ValueError: nothing to be done ({__file__}:{line})"
    assert len(list(ledger.iterdir())) == 2, "it was tried again, which cannot help"
    wait_until(lambda: ray.available_resources().get("CPU") == 8)
    assert control.going_on() == []
