"""Training on a real local Ray: the same weights whatever the workers and whatever dies, every row once an epoch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
import yaml
from sklearn import datasets

from tidegate import evaluation
from tidegate.data.prepared import Prepared
from tidegate.errors import ClusterError, DataError, TrainingError
from tidegate.models.build import build
from tidegate.spec.run import Spec
from tidegate.spec.train import Workers
from tidegate.training import room, trainer, validation
from tidegate.training.checkpoint import Checkpoint
from tidegate.training.progress import News

# Ray warns about its own settings when it copies them.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
AUDIT = Path(__file__).parent.parent / "audit_ledger.py"
DEADLINE_S = 60
EPOCHS = 8

DIGITS = {
    "name": "digits",
    "seed": 5,
    "data": {
        "source": {"path": "digits.parquet"},
        "inputs": {"pixels": {"type": "number", "length": 64}},
        "target": {"column": "digit", "type": "category"},
    },
    "model": {"type": "mlp", "hidden": [32], "dropout": 0.3},
    "train": {"epochs": EPOCHS, "global_batch": 60, "shards": 4, "optimizer": {"type": "adamw", "lr": 0.005}},
}
IMAGES = DIGITS | {
    "name": "images",
    "data": DIGITS["data"] | {"inputs": {"pixels": {"type": "image", "size": [8, 8], "max_value": 16}}},  # type: ignore[operator]
    "model": {"type": "cnn", "channels": [4], "hidden": 16},
    "train": {
        "epochs": 100,
        "global_batch": 128,
        "shards": 3,
        "optimizer": {"type": "adam", "lr": 0.03},
        "early_stop": {"metric": "validation.accuracy", "patience": 1},
    },
}
DIABETES = {
    "name": "diabetes",
    "data": {
        "source": {"path": "diabetes.parquet"},
        "inputs": {"age": {"type": "number"}, "bmi": {"type": "number"}, "sex": {"type": "category"}},
        "target": {"column": "progression", "type": "number"},
    },
    "model": {"type": "linear"},
    "train": {"epochs": 5, "global_batch": 50, "shards": 3, "optimizer": {"type": "momentum", "lr": 0.02}},
}
SENTENCES = {
    "name": "sentences",
    "data": {
        "source": {"path": "sentences.jsonl"},
        "inputs": {"line": {"type": "text", "tokenizer": "word", "vocab_size": 300, "max_length": 12}},
        "target": {"column": "about", "type": "category"},
    },
    "model": {"type": "transformer", "layers": 1, "width": 8, "heads": 2},
    "train": {"epochs": 2, "global_batch": 16, "shards": 2},
}


def table_of(name: str) -> pa.Table:
    """Real data of scikit-learn."""
    if name == "diabetes":
        inputs, progression = datasets.load_diabetes(return_X_y=True, scaled=False)
        sexes = inputs[:, 1].astype(int)
        return pa.table({"age": inputs[:, 0], "bmi": inputs[:, 2], "sex": sexes, "progression": progression})
    if name == "sentences":
        texts = {"iris": datasets.load_iris().DESCR, "wine": datasets.load_wine().DESCR}
        rows = [(line, about) for about, text in texts.items() for line in text.splitlines() if line.strip()]
        return pa.table({"line": [line for line, _ in rows], "about": [about for _, about in rows]})
    pixels, digit = datasets.load_digits(return_X_y=True)
    return pa.table({"pixels": pixels.tolist(), "digit": digit})


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
def audit_ledger() -> ModuleType:
    found = importlib.util.spec_from_file_location("audit_ledger", AUDIT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


@pytest.fixture
def ledger(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that workers record their rows in."""
    folder = tmp_path / "ledger"
    folder.mkdir()
    monkeypatch.setenv("TIDEGATE_LEDGER", str(folder))
    return folder


def spec_of(document: dict[str, Any], workers: int = 1) -> Spec:
    spec = Spec.model_validate(document)
    train = spec.train.model_copy(update={"workers": Workers(min=workers, max=workers)})
    return spec.model_copy(update={"train": train})


def fit(spec: Spec, prepared: Prepared, run: str = "run", **options: Any) -> Checkpoint:
    def ignore(_: object) -> None: ...

    return trainer.fit(spec, prepared, run, **({"on_news": ignore, "say": ignore} | options))


def digest(checkpoint: Checkpoint) -> str:
    """Of all weights and the optimizer's state."""
    total = hashlib.sha256()
    for part in ("model", "optimizer"):
        for name, tensor in sorted(checkpoint.tensors[part].items()):
            total.update(f"{part}.{name}".encode() + tensor.numpy().tobytes())
    return total.hexdigest()


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
    audit_ledger: ModuleType,
) -> None:
    """Three do not divide the four shards. Two workers are below, with one of them killed."""
    spec = spec_of(DIGITS, 3)
    final = fit(spec, prepared_of(spec))
    assert digest(final) == digest(alone[0])
    assert final.state["history"] == alone[0].state["history"]
    found = audit_ledger.audit(ledger, prepared_of(spec), spec)
    assert (found.epochs, found.workers) == (EPOCHS, 3)
    assert found.rows == EPOCHS * prepared_of(spec).num_rows("train")


def test_numbers_and_categories_are_seen_once_an_epoch(
    ledger: Path, prepared_of: Callable[[Spec], Prepared], audit_ledger: ModuleType, tmp_path: Path
) -> None:
    spec = spec_of(DIABETES, 2)
    prepared = prepared_of(spec)
    final = fit(spec, prepared)
    assert final.state["history"][-1]["validation.r2"] > 0.2
    assert audit_ledger.audit(ledger, prepared, spec).epochs == 5
    assert_audit_notices(ledger, prepared, spec, tmp_path)


def assert_audit_notices(ledger: Path, prepared: Prepared, spec: Spec, tmp_path: Path) -> None:
    """The script passes this ledger and fails it with a line less, a line twice, or two rows exchanged."""
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True)))
    command = [sys.executable, str(AUDIT), str(ledger), str(prepared.folder), str(file)]
    passed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (passed.returncode, passed.stderr) == (0, "")
    assert "5 epochs" in passed.stdout
    module = sys.modules["audit_ledger"]
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
        with pytest.raises(module.AuditError):
            module.audit(ledger, prepared, spec)


def test_an_early_stop_keeps_the_best_epoch_and_images_are_seen_once(
    ledger: Path, prepared_of: Callable[[Spec], Prepared], audit_ledger: ModuleType
) -> None:
    spec = spec_of(IMAGES, 2)
    prepared = prepared_of(spec)
    final = fit(spec, prepared)
    accuracies = [record["validation.accuracy"] for record in final.state["history"]]
    best = int(np.argmax(accuracies))
    assert len(accuracies) == best + 2 < 100
    assert final.state["best"] == {"epoch": best + 1, "value": accuracies[best]}
    assert final.state["finished"] is True
    assert accuracy(spec, prepared, final.tensors["best"]) == accuracies[best]
    assert accuracy(spec, prepared, final.tensors["model"]) == accuracies[-1]
    assert audit_ledger.audit(ledger, prepared, spec).epochs == len(accuracies)


def accuracy(spec: Spec, prepared: Prepared, weights: Any) -> float:
    model = build(spec.model, prepared.features, prepared.target.num_outputs, seed=0)
    model.load_state_dict(weights)
    reader = prepared.reader("validation")
    outputs, targets = validation.outputs(model, reader, worker=0, workers=1, device=torch.device("cpu"))
    return evaluation.compute(spec.task, outputs, targets, ["accuracy"])["accuracy"]


def test_texts_are_seen_once_an_epoch(
    ledger: Path, prepared_of: Callable[[Spec], Prepared], audit_ledger: ModuleType
) -> None:
    spec = spec_of(SENTENCES, 2)
    fit(spec, prepared_of(spec))
    assert audit_ledger.audit(ledger, prepared_of(spec), spec).epochs == 2


def test_a_run_whose_worker_is_killed_ends_with_the_same_weights(
    alone: tuple[Checkpoint, list[News]], ledger: Path, home: Path, prepared_of: Callable[[Spec], Prepared]
) -> None:
    spec, news = spec_of(DIGITS, 2), []  # type: tuple[Spec, list[News]]
    with killer(lambda: worker_after_a_checkpoint(home / "runs" / "run", ledger)) as killed:
        final = fit(spec, prepared_of(spec), checkpoint_every_s=0.25, on_news=news.append)
    assert len(killed) == 1
    assert digest(final) == digest(alone[0])
    told = [record["epoch"] for item in news for record in item.epochs]
    assert told == list(range(1, EPOCHS + 1))
    first, second = sorted(attempts(ledger, worker=0), key=lambda steps: steps[0])
    assert 0 == first[0] < second[0] <= first[-1] + 1
    assert second[-1] == EPOCHS * 24 - 1
    assert_the_same_rows_where_steps_were_repeated(ledger)


def test_an_interrupted_run_goes_on_under_its_name_with_the_same_weights(
    alone: tuple[Checkpoint, list[News]], ledger: Path, home: Path, prepared_of: Callable[[Spec], Prepared]
) -> None:
    spec, handler = spec_of(DIGITS), signal.getsignal(signal.SIGINT)

    def this_process() -> int | None:
        return os.getpid() if worker_after_a_checkpoint(home / "runs" / "run", ledger) else None

    with killer(this_process, signal.SIGINT) as interrupted, pytest.raises(KeyboardInterrupt):
        fit(spec, prepared_of(spec), checkpoint_every_s=0.25)
    assert interrupted == [os.getpid()]
    assert signal.getsignal(signal.SIGINT) is handler
    final = fit(spec, prepared_of(spec))
    assert digest(final) == digest(alone[0])
    assert min(steps[0] for steps in attempts(ledger, worker=0)) == 0 < max(s[0] for s in attempts(ledger, worker=0))
    assert_the_same_rows_where_steps_were_repeated(ledger)


class killer:  # noqa: N801 - reads as a verb where it is used
    """Kills the process that `find` names, in a thread, as soon as there is one; the ids of those killed."""

    def __init__(self, find: Callable[[], int | None], signal: signal.Signals = signal.SIGKILL) -> None:
        self.find, self.signal, self.over = find, signal, threading.Event()
        self.killed: list[int] = []
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self) -> list[int]:
        self.thread.start()
        return self.killed

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(0.005):
            process = self.find()
            if process is not None:
                os.kill(process, self.signal)
                self.killed.append(process)
                return


def worker_after_a_checkpoint(run: Path, ledger: Path) -> int | None:
    """Worker 0, the one that writes checkpoints, once it has trained on after a checkpoint in the middle."""
    done = [int(folder.name.split("-")[1]) for folder in run.glob("checkpoints/step-*[0-9]")]
    for file in ledger.glob("run-0-*.jsonl"):
        lines = file.read_text().splitlines()
        if done and min(done) < len(lines) // 2 < EPOCHS * 20:
            return int(file.stem.rsplit("-", 1)[1])
    return None


def attempts(ledger: Path, worker: int) -> Iterator[list[int]]:
    """The steps of each process that was this worker."""
    for file in ledger.glob(f"run-{worker}-*.jsonl"):
        yield [json.loads(line)["step"] for line in file.read_text().splitlines()]


def assert_the_same_rows_where_steps_were_repeated(ledger: Path) -> None:
    found: dict[tuple[int, int], list[int]] = {}
    for file in ledger.iterdir():
        for entry in map(json.loads, file.read_text().splitlines()):
            assert found.setdefault((entry["step"], entry["shard"]), entry["rows"]) == entry["rows"]
    assert set(found) == {(step, shard) for step in range(EPOCHS * 24) for shard in range(4)}


def test_a_loss_that_is_not_finite_ends_the_run_at_once_with_a_remedy(
    ledger: Path, prepared_of: Callable[[Spec], Prepared]
) -> None:
    document = DIABETES | {"train": DIABETES["train"] | {"epochs": 50, "optimizer": {"type": "sgd", "lr": 100.0}}}  # type: ignore[operator]
    spec = spec_of(document, 2)
    with pytest.raises(TrainingError, match=r"the loss became (inf|nan) at step \d+") as caught:
        fit(spec, prepared_of(spec))
    assert "train.optimizer.lr" in caught.value.remedy
    assert "Traceback" not in str(caught.value)
    assert len(list(ledger.iterdir())) == 2, "it was tried again, which cannot help"


def test_more_workers_than_the_cluster_can_ever_have_are_refused(
    home: Path, prepared_of: Callable[[Spec], Prepared]
) -> None:
    spec = spec_of(DIGITS | {"train": {"shards": 8}}, 8)
    with pytest.raises(
        ClusterError, match=r"needs 8 workers of 1 CPUs and 1 CPU for its feed.* 8 CPUs in all"
    ) as caught:
        fit(spec, prepared_of(spec))
    assert "train.workers" in caught.value.remedy


def test_a_batch_larger_than_the_training_split_is_refused(home: Path, prepared_of: Callable[[Spec], Prepared]) -> None:
    spec = spec_of(DIGITS | {"train": {"global_batch": 100_000}})
    with pytest.raises(DataError, match=r"global_batch is 100000, but the training split has 1438 rows"):
        fit(spec, prepared_of(spec))


@pytest.fixture
def held(ray_local: None) -> Iterator[Callable[[int], Any]]:
    """An actor that holds some CPUs, as an endpoint would."""
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


class Holder:
    def ready(self) -> None: ...


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_takes_no_more_workers_than_are_free_now(held: Callable[[int], Any]) -> None:
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 8)
    held(4)
    assert room.workers(Workers(min=1, max=8), print) == (1, 3)
    assert room.workers(Workers(min=1, max=2), print) == (1, 2)
    assert room.workers(Workers(min=1, max=2, cpu=2), print) == (1, 1)


def test_a_run_waits_for_cpus_that_are_held_and_says_so(held: Callable[[int], Any]) -> None:
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 8)
    holder, said = held(7), []

    def say(text: str) -> None:
        said.append(text)
        ray.kill(holder)

    assert room.workers(Workers(min=2, max=3), say) == (2, 3)
    assert said == ["waiting for 3 CPUs: 1 are free"]
