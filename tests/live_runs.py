"""Runs on a live Ray: real data, ways to carry a run, to ask things of it and to take its processes away."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import yaml
from sklearn import datasets

import tones
from tidegate import settings
from tidegate.data.prepared import Prepared
from tidegate.errors import TidegateError
from tidegate.spec.run import Spec, located
from tidegate.training import control, trainer
from tidegate.training.checkpoint import Checkpoint, Checkpoints
from tidegate.training.progress import News

TESTS = Path(__file__).parent
DEADLINE_S = 240
"""For each thing a test waits for. Machines that run tests are shared."""

DIGITS: dict[str, Any] = {
    "name": "digits",
    "seed": 5,
    "data": {
        "source": {"path": "digits.parquet"},
        "inputs": {"pixels": {"type": "number", "length": 64}},
        "target": {"column": "digit", "type": "category"},
    },
    "model": {"type": "mlp", "hidden": [32], "dropout": 0.3},
    "train": {"epochs": 8, "global_batch": 60, "shards": 4, "optimizer": {"type": "adamw", "lr": 0.005}},
}
IMAGES: dict[str, Any] = DIGITS | {
    "name": "images",
    "data": DIGITS["data"] | {"inputs": {"pixels": {"type": "image", "size": [8, 8], "max_value": 16}}},
    "model": {"type": "cnn", "channels": [4], "hidden": 16},
}
SENTENCES: dict[str, Any] = {
    "name": "sentences",
    "data": {
        "source": {"path": "sentences.parquet"},
        "inputs": {"line": {"type": "text", "tokenizer": "word", "vocab_size": 300, "max_length": 12}},
        "target": {"column": "about", "type": "category"},
    },
    "model": {"type": "transformer", "layers": 1, "width": 8, "heads": 2},
    "train": {"epochs": 2, "global_batch": 16, "shards": 2},
}
STROKES: dict[str, Any] = DIGITS | {
    "name": "strokes",
    "data": {
        "source": {"path": "strokes.parquet"},
        "inputs": {"columns": {"type": "series", "max_length": 8, "channels": 8}},
        "target": {"column": "digit", "type": "category"},
    },
    "model": {"type": "rnn", "cell": "gru", "width": 16, "bidirectional": True, "dropout": 0.2},
}
SPOTS: dict[str, Any] = {
    "name": "spots",
    "data": {
        "source": {"path": "spots.parquet"},
        "inputs": {"past": {"type": "series", "max_length": 12}},
        "target": {"column": "next", "type": "number", "length": 3},
    },
    "model": {"type": "forecast", "encoder": "transformer", "width": 8, "heads": 2, "dropout": 0.1},
    "train": {"epochs": 8, "global_batch": 60, "shards": 4, "group_by_length": True},
}
NUMERALS: dict[str, Any] = {
    "name": "numerals",
    "data": {
        "source": {"path": "numerals.parquet"},
        "inputs": {"number": {"type": "text", "tokenizer": "character", "max_length": 4}},
        "target": {"column": "numeral", "type": "text", "tokenizer": "character", "max_length": 12},
    },
    "model": {"type": "seq2seq", "network": "transformer", "layers": 1, "width": 16, "heads": 2, "beam": 2},
    "train": {"epochs": 4, "global_batch": 50, "shards": 4, "group_by_length": True},
}
TONES: dict[str, Any] = {
    "name": "tones",
    "data": {
        "source": {"path": "tones.parquet"},
        "inputs": {"sound": {"type": "audio", "max_seconds": 1.0, "sampling_rate": tones.RATE, "mels": 20}},
        "target": {"column": "keys", "type": "text", "tokenizer": "character", "max_length": 8},
    },
    "model": {"type": "ctc", "encoder": "gru", "layers": 1, "width": 16, "dropout": 0.1},
    "train": {"epochs": 4, "global_batch": 40, "shards": 4, "group_by_length": True},
}
DIABETES: dict[str, Any] = {
    "name": "diabetes",
    "data": {
        "source": {"path": "diabetes.parquet"},
        "inputs": {"age": {"type": "number"}, "bmi": {"type": "number"}, "sex": {"type": "category"}},
        "target": {"column": "progression", "type": "number"},
    },
    "model": {"type": "linear"},
    "train": {"epochs": 5, "global_batch": 50, "shards": 3, "optimizer": {"type": "momentum", "lr": 0.02}},
}


def table_of(name: str) -> pa.Table:
    """Real data of scikit-learn; the numerals of Rome; the tones of a telephone."""
    if name == "diabetes":
        inputs, progression = datasets.load_diabetes(return_X_y=True, scaled=False)
        sexes = inputs[:, 1].astype(int)
        return pa.table({"age": inputs[:, 0], "bmi": inputs[:, 2], "sex": sexes, "progression": progression})
    if name == "sentences":
        texts = {"iris": datasets.load_iris().DESCR, "wine": datasets.load_wine().DESCR}
        rows = [(line, about) for about, text in texts.items() for line in text.splitlines() if line.strip()]
        return pa.table({"line": [line for line, _ in rows], "about": [about for _, about in rows]})
    if name in ("numerals", "recited"):
        numbers = range(1, 1000)
        return pa.table({"number": [str(number) for number in numbers], "numeral": [roman(n) for n in numbers]})
    if name == "tones":
        return tones.table(300)
    if name == "spots":
        # The columns of pixels of digits, one after the other, as a series of how much ink there is.
        ink = datasets.load_digits().images.sum(axis=1).reshape(-1)[:3000]
        starts = range(20, len(ink) - 3, 5)
        return pa.table(
            {
                "past": [ink[start - 4 - start % 9 : start].tolist() for start in starts],
                "next": [ink[start : start + 3].tolist() for start in starts],
            }
        )
    pixels, digit = datasets.load_digits(return_X_y=True)
    if name == "strokes":
        # From left to right, up to the last column with ink: three to eight steps.
        pictures = pixels.reshape(-1, 8, 8).transpose(0, 2, 1)
        ends = [int(np.flatnonzero(picture.any(axis=1))[-1]) + 1 for picture in pictures]
        columns = [picture[:end].tolist() for picture, end in zip(pictures, ends, strict=True)]
        return pa.table({"columns": columns, "digit": digit})
    return pa.table({"pixels": pixels.tolist(), "digit": digit})


def roman(number: int) -> str:
    """The Roman numeral of 1 to 999."""
    digits = [("", "C", "CC", "CCC", "CD", "D", "DC", "DCC", "DCCC", "CM")[number // 100]]
    digits.append(("", "X", "XX", "XXX", "XL", "L", "LX", "LXX", "LXXX", "XC")[number // 10 % 10])
    return "".join([*digits, ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")[number % 10]])


def spec_of(document: dict[str, Any], workers: int | tuple[int, int] = 1, **train: Any) -> Spec:
    """A spec for so many workers, or at least and at most so many. `train` replaces keys of its `train`."""
    low, high = (workers, workers) if isinstance(workers, int) else workers
    merged = document["train"] | train | {"workers": {"min": low, "max": high}}
    return Spec.model_validate(document | {"train": merged})


def on_disk(spec: Spec) -> Spec:
    """The spec with its data written into the home directory, as prepare reads it."""
    file = settings.home() / spec.data.source.path
    if not file.exists():
        pq.write_table(table_of(spec.name), file)
    return located(spec, settings.home())


def fit(spec: Spec, prepared: Prepared, run: str = "run", **options: Any) -> Checkpoint:
    """Train in this thread."""
    return trainer.fit(spec, prepared, run, **({"on_news": ignore, "say": ignore} | options))


def ignore(_: object) -> None: ...


def paced(gate: Path, pause_s: float = 0.05) -> Callable[[Any], None]:
    """Tidegate's own loop, slow for as long as the file `gate` is there: a run that lasts while a test needs it."""

    def loop(fit: Any) -> None:
        model, _ = fit.prepare(fit.build())
        loss_of = fit.objective()
        for batch in fit.batches("train"):
            if gate.exists():
                time.sleep(pause_s)
            fit.step(*loss_of(model(batch), batch[fit.target.column]))

    return loop


def digest(checkpoint: Checkpoint) -> str:
    """Of all weights and the optimizer's state."""
    total = hashlib.sha256()
    for part in ("model", "optimizer"):
        for name, tensor in sorted(checkpoint.tensors[part].items()):
            total.update(f"{part}.{name}".encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def folder_of(run: str) -> Path:
    return settings.home() / "runs" / run


def final_of(run: str) -> Checkpoint:
    """The checkpoint that a finished run ended with."""
    found = Checkpoints(str(folder_of(run) / "checkpoints")).latest()
    assert found is not None
    assert found.state["finished"]
    return found


def steps_done(run: str) -> int:
    """How far the run's newest group of workers is, to the step: what its counter says."""
    try:
        (steps,) = struct.unpack("<q", (folder_of(run) / "steps").read_bytes())
    except (FileNotFoundError, struct.error):
        return 0
    return int(steps)


def wait_until(true: Callable[[], bool], check: Callable[[], None] = lambda: None, what: str = "") -> None:
    """Return when `true()`. `check` raises what makes waiting vain."""
    until = time.monotonic() + DEADLINE_S
    while not true():
        check()
        assert time.monotonic() < until, f"waited in vain {what}"
        time.sleep(0.01)


class Carried:
    """A run that somebody carries while the test asks things of it."""

    def __init__(self, run: str) -> None:
        self.run = run

    def check(self) -> None:
        """Raises what ended the run too early."""
        raise NotImplementedError

    def until(self, true: Callable[[], bool]) -> None:
        wait_until(true, self.check, f"while {self.run} was at step {steps_done(self.run)}")

    def until_step(self, step: int) -> None:
        """Until so many steps are done; the step is not exceeded by much."""
        self.until(lambda: steps_done(self.run) >= step)

    def until_phase(self, phase: str) -> None:
        self._until_news(lambda news: news.phase == phase)

    def until_size(self, workers: int) -> News:
        """Until that many workers train and have finished a step."""
        return self._until_news(lambda news: self._trains(news) and news.progress.workers == workers)

    def until_group(self, groups: int) -> News:
        """Until the run's n-th group of workers, counted over all its drivers, has finished a step."""
        return self._until_news(lambda news: self._trains(news) and news.totals.groups >= groups)

    def resize(self, workers: int) -> None:
        """Ask for a size as soon as the run can be asked, and wait until it has it."""
        self.until(lambda: self.run in control.going_on())
        control.resize(self.run, workers, why="the test")
        self.until_size(workers)

    def _trains(self, news: News) -> bool:
        """Whether the newest group of workers trains and has finished a step."""
        events = [what for what, _ in control.history(self.run)]
        return news.phase == "training" and "first_step" in events[::-1][: events[::-1].index("started")]

    def _until_news(self, true: Callable[[News], bool]) -> News:
        seen: list[News] = []

        def there() -> bool:
            news = control.status(self.run)
            seen.extend([news] if news else [])
            return news is not None and true(news)

        self.until(there)
        return seen[-1]


class InThread(Carried):
    """Carried by a thread of this process. Used as a context manager, which stops the run if the test fails."""

    def __init__(self, spec: Spec, prepared: Prepared, run: str, **options: Any) -> None:
        super().__init__(run)
        self.news: list[News] = []
        self._error: BaseException | None = None
        self._final: Checkpoint | None = None
        self._thread = threading.Thread(target=self._carry, args=(spec, prepared, options))

    def __enter__(self) -> InThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        until = time.monotonic() + DEADLINE_S
        while self._thread.is_alive() and time.monotonic() < until:
            # It may have ended meanwhile, or be about to.
            with suppress(TidegateError, ray.exceptions.RayError):
                control.stop(self.run, why="the test is over")
            self._thread.join(5)

    def _carry(self, spec: Spec, prepared: Prepared, options: dict[str, Any]) -> None:
        try:
            self._final = fit(spec, prepared, self.run, on_news=self.news.append, **options)
        except BaseException as error:  # noqa: BLE001 - raised where the test waits
            self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise self._error
        assert self._thread.is_alive(), f"{self.run} has ended already"

    def final(self, within_s: float = DEADLINE_S) -> Checkpoint:
        """The final checkpoint, when there is one. Raises what ended the run."""
        self._thread.join(within_s)
        assert not self._thread.is_alive(), f"{self.run} does not end, at step {steps_done(self.run)}"
        if self._error is not None:
            raise self._error
        assert self._final is not None
        return self._final

    @property
    def lines(self) -> list[str]:
        """What was told to the person who follows it."""
        return [line for news in self.news for line in news.lines]


class Driver(Carried):
    """Carried by a process of its own that joins this Ray: a person's driver, from data to registered version."""

    def __init__(self, spec: Spec, run: str, loop: str = "") -> None:
        super().__init__(run)
        self._spec, self._loop = spec, loop
        self._output = folder_of(run).with_suffix(f".{time.time_ns()}.txt")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Driver:
        self._output.parent.mkdir(exist_ok=True)
        spec = self._output.with_suffix(".yaml")
        spec.write_text(yaml.safe_dump(self._spec.model_dump(mode="json", exclude_unset=True)))
        address = ray.get_runtime_context().gcs_address
        command = [sys.executable, str(TESTS / "drive_run.py"), address, str(spec), self.run, self._loop]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def output(self) -> str:
        return self._output.read_text()

    def check(self) -> None:
        assert self.process.poll() is None, f"the driver of {self.run} ended: {self.output}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def final(self) -> Checkpoint:
        self.process.wait(DEADLINE_S)
        assert self.process.returncode == 0, self.output
        return final_of(self.run)


def workers_of(run: str, ledger: Path) -> list[int]:
    """Process ids of the run's living workers that have trained on something, first rank first."""
    files = sorted(ledger.glob(f"{run}-*-*.jsonl"), key=lambda file: int(file.stem.split("-")[-2]))
    return [pid for pid in (int(file.stem.rsplit("-", 1)[1]) for file in files) if is_worker(pid)]


def is_worker(pid: int) -> bool:
    """Whether this is a living worker of our own Ray: its number may have been given to another process since."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    # What it calls itself while it trains, and while its group is taken down.
    return title.startswith((b"ray::RayTrainWorker", b"ray::execute")) and (
        f"HOME={os.environ['HOME']}".encode() in environment
    )


def kill_worker(pid: int) -> None:
    assert is_worker(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_worker(pid))


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
