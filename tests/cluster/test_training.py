"""Training on a real local Ray: the same weights whatever the workers and whatever dies, every row once an epoch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml

import audit_ledger
from audit_ledger import AuditError, audit
from histories import losses_account_for
from live_runs import (
    DIABETES,
    DIGITS,
    IMAGES,
    SENTENCES,
    digest,
    fit,
    folder_of,
    killer,
    spec_of,
    steps_done,
    table_of,
    wait_until,
    workers_of,
)
from tidegate import evaluation
from tidegate.data.prepared import Prepared
from tidegate.errors import ClusterError, DataError, TrainingError
from tidegate.models.build import build
from tidegate.spec.run import Spec
from tidegate.spec.train import Workers
from tidegate.training import room, validation
from tidegate.training.checkpoint import Checkpoint, Checkpoints
from tidegate.training.progress import News

# Ray warns about its own settings when it copies them.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
EPOCHS = 8
IMAGES_STOPPED_EARLY = IMAGES["train"] | {
    "epochs": 100,
    "global_batch": 128,
    "shards": 3,
    "optimizer": {"type": "adam", "lr": 0.03},
    "early_stop": {"metric": "validation.accuracy", "patience": 1},
}


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    """Every test names its run `run`."""


@pytest.fixture(scope="module")
def prepared_of(tmp_path_factory: pytest.TempPathFactory, prepare_by_hand: Any) -> Callable[[Spec], Prepared]:
    """Prepared data by the name of its spec, made once."""
    made: dict[str, Prepared] = {}

    def prepared(spec: Spec) -> Prepared:
        if spec.name not in made:
            folder = tmp_path_factory.mktemp("data") / spec.name
            made[spec.name] = prepare_by_hand(folder, spec, table_of(spec.name))
        return made[spec.name]

    return prepared


@pytest.fixture(scope="module")
def alone(
    ray_local: None, tmp_path_factory: pytest.TempPathFactory, prepared_of: Callable[[Spec], Prepared]
) -> tuple[Checkpoint, list[News]]:
    """The digits trained by one worker, undisturbed."""
    news: list[News] = []
    spec = spec_of(DIGITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEGATE_HOME", str(tmp_path_factory.mktemp("home")))
        return fit(spec, prepared_of(spec), on_news=news.append), news


def test_one_worker_trains_to_the_end_and_tells_every_epoch_once(alone: tuple[Checkpoint, list[News]]) -> None:
    final, news = alone
    told = [record["epoch"] for item in news for record in item.epochs]
    assert told == list(range(1, EPOCHS + 1)) == [record["epoch"] for record in final.state["history"]]
    assert final.state["finished"] is True
    assert final.step == news[-1].progress.step == news[-1].progress.total_steps == EPOCHS * 24
    assert (news[-1].progress.epoch, news[-1].progress.workers) == (EPOCHS, 1)
    losses = [record["train.loss"] for record in final.state["history"]]
    assert losses[-1] < losses[0] / 2
    assert final.state["history"][-1]["validation.accuracy"] > 0.9


def test_three_workers_make_the_same_weights_and_see_every_number_once(
    alone: tuple[Checkpoint, list[News]],
    ledger: Path,
    prepared_of: Callable[[Spec], Prepared],
) -> None:
    """Three do not divide the four shards. Two workers are below, with one of them killed."""
    spec = spec_of(DIGITS, 3)
    final = fit(spec, prepared_of(spec))
    assert digest(final) == digest(alone[0])
    assert final.state["history"] == alone[0].state["history"]
    found = audit(ledger, prepared_of(spec), spec)
    assert (found.epochs, found.workers) == (EPOCHS, 3)
    assert found.rows == EPOCHS * prepared_of(spec).num_rows("train")
    assert found.rows_thrown_away == 0


def test_numbers_and_categories_are_seen_once_an_epoch(
    ledger: Path, prepared_of: Callable[[Spec], Prepared], tmp_path: Path
) -> None:
    spec = spec_of(DIABETES, 2)
    prepared = prepared_of(spec)
    final = fit(spec, prepared)
    assert final.state["history"][-1]["validation.r2"] > 0.2
    assert audit(ledger, prepared, spec).epochs == 5
    assert_audit_notices(ledger, prepared, spec, tmp_path)


def assert_audit_notices(ledger: Path, prepared: Prepared, spec: Spec, tmp_path: Path) -> None:
    """The script passes this ledger and fails it with a line less, a line twice, or two rows or lines exchanged."""
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True)))
    command = [sys.executable, audit_ledger.__file__, str(ledger), str(prepared.folder), str(file)]
    passed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (passed.returncode, passed.stderr) == (0, "")
    assert "5 epochs" in passed.stdout
    assert "thrown away: 0 rows of 0 steps" in passed.stdout
    entries = sorted(ledger.iterdir())[0]
    lines = entries.read_text().splitlines()
    entry = json.loads(lines[3])
    exchanged = json.dumps(entry | {"rows": entry["rows"][::-1]})
    for changed in (
        lines[:3] + lines[4:],
        [*lines[:4], lines[3], *lines[4:]],
        [*lines[:3], exchanged, *lines[4:]],
        [*lines[:2], lines[3], lines[2], *lines[4:]],
        lines[:-1],
    ):
        entries.write_text("\n".join(changed) + "\n")
        with pytest.raises(AuditError):
            audit(ledger, prepared, spec)


def test_an_early_stop_keeps_the_best_epoch_and_images_are_seen_once(
    ledger: Path, prepared_of: Callable[[Spec], Prepared]
) -> None:
    spec = spec_of(IMAGES, 2, **IMAGES_STOPPED_EARLY)
    prepared = prepared_of(spec)
    final = fit(spec, prepared)
    accuracies = [record["validation.accuracy"] for record in final.state["history"]]
    best = int(np.argmax(accuracies))
    assert len(accuracies) == best + 2 < 100
    assert final.state["best"] == {"epoch": best + 1, "value": accuracies[best]}
    assert final.state["finished"] is True
    assert accuracy(spec, prepared, final.tensors["best"]) == accuracies[best]
    assert accuracy(spec, prepared, final.tensors["model"]) == accuracies[-1]
    assert audit(ledger, prepared, spec).epochs == len(accuracies)


def accuracy(spec: Spec, prepared: Prepared, weights: Any) -> float:
    model = build(spec.model, prepared.features, prepared.target.feature, seed=0)
    model.load_state_dict(weights)
    reader = prepared.reader("validation")
    outputs, targets = validation.outputs(
        model, reader, prepared.target, worker=0, workers=1, device=torch.device("cpu")
    )
    return evaluation.compute(spec.task, outputs, targets, ["accuracy"])["accuracy"]


def test_texts_are_seen_once_an_epoch(ledger: Path, prepared_of: Callable[[Spec], Prepared]) -> None:
    spec = spec_of(SENTENCES, 2)
    fit(spec, prepared_of(spec))
    assert audit(ledger, prepared_of(spec), spec).epochs == 2


def test_a_run_whose_worker_is_killed_ends_with_the_same_weights(
    alone: tuple[Checkpoint, list[News]], ledger: Path, prepared_of: Callable[[Spec], Prepared]
) -> None:
    spec, news = spec_of(DIGITS, 2, checkpoint={"every_steps": 20}), []  # type: tuple[Spec, list[News]]
    with killer(lambda: first_worker_after_a_checkpoint(ledger)) as killed:
        final = fit(spec, prepared_of(spec), on_news=news.append)
    assert len(killed) == 1
    assert digest(final) == digest(alone[0])
    told = [record["epoch"] for item in news for record in item.epochs]
    assert told == list(range(1, EPOCHS + 1))
    assert (news[-1].totals.restarts, news[-1].totals.groups) == (1, 2)
    assert any(line.startswith("lost workers: worker 0") for item in news for line in item.lines)
    first, second = sorted(attempts(ledger, worker=0), key=lambda steps: steps[0])
    assert 0 == first[0] < second[0] <= first[-1] + 1
    found = audit(ledger, prepared_of(spec), spec)
    assert losses_account_for(found.steps_twice - news[-1].totals.steps_twice, losses=1)
    assert found.workers == 4


def test_an_interrupted_run_stops_at_a_checkpoint_and_goes_on_under_its_name(
    alone: tuple[Checkpoint, list[News]], ledger: Path, prepared_of: Callable[[Spec], Prepared]
) -> None:
    spec, handler = spec_of(DIGITS), signal.getsignal(signal.SIGINT)

    def this_process() -> int | None:
        return os.getpid() if steps_done("run") > 30 else None

    with killer(this_process, signal.SIGINT) as interrupted, pytest.raises(KeyboardInterrupt):
        fit(spec, prepared_of(spec))
    assert interrupted == [os.getpid()]
    assert signal.getsignal(signal.SIGINT) is handler
    stopped = checkpoints_of("run").latest()
    assert stopped is not None
    assert 30 < stopped.step == steps_done("run") < EPOCHS * 24
    news: list[News] = []
    final = fit(spec, prepared_of(spec), on_news=news.append)
    assert digest(final) == digest(alone[0])
    assert sorted(steps[0] for steps in attempts(ledger, worker=0)) == [0, stopped.step]
    assert audit(ledger, prepared_of(spec), spec).rows_thrown_away == 0
    assert (news[-1].totals.groups, news[-1].totals.steps_twice) == (2, 0)


def checkpoints_of(run: str) -> Checkpoints:
    return Checkpoints(str(folder_of(run) / "checkpoints"))


def first_worker_after_a_checkpoint(ledger: Path) -> int | None:
    """Worker 0, the one that writes checkpoints, once it has trained on after a checkpoint in the middle."""
    if steps_done("run") > 30 and checkpoints_of("run").steps():
        return next(iter(workers_of("run", ledger)), None)
    return None


def attempts(ledger: Path, worker: int) -> Iterator[list[int]]:
    """The steps of each process that was this worker."""
    for file in ledger.glob(f"run-{worker}-*.jsonl"):
        yield [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_the_ray_data_feed_brings_the_same_rows(
    alone: tuple[Checkpoint, list[News]], ledger: Path, prepared_of: Callable[[Spec], Prepared]
) -> None:
    spec = spec_of(DIGITS | {"data": DIGITS["data"] | {"feed": "ray_data"}}, 2)
    final = fit(spec, prepared_of(spec))
    assert digest(final) == digest(alone[0])
    assert audit(ledger, prepared_of(spec), spec).workers == 2


def test_a_loss_that_is_not_finite_ends_the_run_at_once_with_a_remedy(
    ledger: Path, prepared_of: Callable[[Spec], Prepared]
) -> None:
    spec = spec_of(DIABETES, 2, epochs=50, optimizer={"type": "sgd", "lr": 100.0})
    with pytest.raises(TrainingError, match=r"the loss became (inf|nan) at step \d+") as caught:
        fit(spec, prepared_of(spec))
    assert "train.optimizer.lr" in caught.value.remedy
    assert "Traceback" not in str(caught.value)
    assert len(list(ledger.iterdir())) == 2, "it was tried again, which cannot help"


def test_more_workers_than_the_cluster_can_ever_have_are_refused(prepared_of: Callable[[Spec], Prepared]) -> None:
    spec = spec_of(DIGITS, 9, shards=9)
    with pytest.raises(ClusterError, match=r"needs 9 workers of 1 CPU each; the cluster has 8 CPUs in all") as caught:
        fit(spec, prepared_of(spec))
    assert "train.workers" in caught.value.remedy


def test_the_ray_data_feed_needs_a_cpu_that_no_worker_has(prepared_of: Callable[[Spec], Prepared]) -> None:
    spec = spec_of(DIGITS | {"data": DIGITS["data"] | {"feed": "ray_data"}}, 8, shards=8)
    with pytest.raises(ClusterError, match=r"8 workers of 1 CPU each, and 1 CPU for the feed; .* 8 CPUs in all"):
        fit(spec, prepared_of(spec))


def test_a_batch_larger_than_the_training_split_is_refused(prepared_of: Callable[[Spec], Prepared]) -> None:
    spec = spec_of(DIGITS, global_batch=100_000)
    with pytest.raises(DataError, match=r"global_batch is 100000, but the training split has 1438 rows"):
        fit(spec, prepared_of(spec))


@pytest.fixture
def held(ray_local: None) -> Iterator[Callable[[int], Any]]:
    """An actor that holds some CPUs, as an endpoint would."""

    class Holder:
        def ready(self) -> None: ...

    actors = []

    def hold(cpus: int) -> Any:
        actors.append(ray.remote(num_cpus=cpus)(Holder).remote())
        ray.get(actors[-1].ready.remote())
        wait_until(lambda: ray.available_resources().get("CPU", 0) <= 8 - cpus)
        return actors[-1]

    yield hold
    for actor in actors:
        ray.kill(actor)
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 8)


def never() -> bool:
    return False


def test_a_run_takes_no_more_workers_than_are_free_now(held: Callable[[int], Any]) -> None:
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 8)
    held(4)
    assert room.wait(Workers(min=1, max=8), 0, print, never) == 4
    assert room.wait(Workers(min=1, max=8), 1, print, never) == 3
    assert room.wait(Workers(min=1, max=2), 1, print, never) == 2
    assert room.wait(Workers(min=1, max=2, cpu=3), 1, print, never) == 1


def test_a_run_waits_for_cpus_that_are_held_and_says_so(held: Callable[[int], Any]) -> None:
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 8)
    holder, said = held(7), []

    def say(text: str) -> None:
        said.append(text)
        ray.kill(holder)

    assert room.wait(Workers(min=2, max=3), 0, say, never) == 3
    assert said == ["waiting for room for 2 workers of 1 CPU each: there is room for 1"]


def test_a_run_that_is_to_end_waits_no_longer(held: Callable[[int], Any]) -> None:
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 8)
    held(8)
    told: list[str] = []
    assert room.wait(Workers(min=1, max=1), 0, told.append, lambda: bool(told)) == 0
