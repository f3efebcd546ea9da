"""One cluster for training and serving, shown on this machine: a run holds what an endpoint leaves over, real HTTP
requests make the endpoint grow into it, and when they end the run takes it back. The model is the same, bit for bit.

Ray counts four CPUs here whatever the machine has. Everything is kept in a folder of its own under the home directory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import tidegate as tg
from tidegate import cluster, settings
from tidegate.errors import NotFoundError, TidegateError
from tidegate.scheduling.report import Event, Report
from tidegate.scheduling.timeline import Sample
from tidegate.spec.run import Spec
from tidegate.training.progress import News

JOBS = Path(__file__).parent
CPUS, WORKERS, REPLICAS = 4, 3, 3
RULES = "cool_down_s: 5\n"
ENDPOINT = {
    "name": "digits",
    "model": "digits",
    "replicas": {"min": 1, "max": REPLICAS, "cpu": 1},
    "autoscale": {"target_ongoing_requests": 2, "up_after_s": 1, "down_after_s": 5},
}
CLIENTS, ROWS = 16, 64
CALM_S, LOAD_S = 10.0, 15.0
"""How long nothing happens at first, and how long the clients go on once all replicas are there."""
LONG_ENOUGH_S = 75.0
"""How long the run is to take undisturbed, so that the tide comes and goes before it ends."""
PATIENCE_S = 180.0


@dataclass
class Tide:
    """What came of it. Devices over time are `samples`; times are seconds since the epoch."""

    undisturbed: str = ""
    digest: str = ""
    answered: int = 0
    failed: int = 0
    failure: str = ""
    steps_twice: int = 0
    resizes: int = 0
    lent_before: float = 0.0
    """Of the CPUs that no replica held in the calm before the load, the share that training held."""
    seconds_to_grow: float = float("nan")
    seconds_to_return: float = float("nan")
    picture: str = ""
    samples: list[Sample] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        return self.digest == self.undisturbed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="where the endpoint answers (default 8000)")
    parser.add_argument("--epochs", type=int, help="of the run; else enough for about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what came of it there too")
    options = parser.parse_args()
    try:
        tide = show(options.port, options.epochs)
    except TidegateError as error:
        if settings.TRACEBACK.flag():
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        options.json.write_text(json.dumps(asdict(tide), indent=1))
    return 0 if tide.is_equal and not tide.failed and not tide.steps_twice else 1


def show(port: int, epochs: int | None) -> Tide:
    """Run the story on a cluster of its own."""
    os.environ[settings.HOME.name] = str(settings.home() / "demo-sharing")
    cluster.down()
    (settings.home() / "capacity.yaml").write_text(RULES)
    print(f"starting Ray with {CPUS} logical CPUs ...", flush=True)
    try:
        tg.connect(cluster.up(cpus=CPUS, gpus=0, serve_port=port).address)
        subprocess.run([sys.executable, str(JOBS / "datasets" / "digits.py")], check=True, stdout=subprocess.DEVNULL)
        spec = spec_of(epochs or epochs_for(LONG_ENOUGH_S))
        tide = Tide(undisturbed=undisturbed(spec))
        tg.deploy(tg.Endpoint.model_validate(ENDPOINT))
        through_the_tide(spec, tide)
        tell(tide)
        return tide
    finally:
        cluster.down()


def spec_of(epochs: int) -> Spec:
    """The digits, published nowhere, on any number of workers up to what the endpoint leaves over."""
    spec = tg.load_spec(JOBS / "specs" / "digits.yaml")
    workers = spec.train.workers.model_copy(update={"min": 1, "max": WORKERS})
    train = spec.train.model_copy(update={"epochs": epochs, "workers": workers, "shards": WORKERS, "global_batch": 96})
    return spec.model_copy(update={"train": train, "publish": type(spec.publish)()})


def epochs_for(seconds: float) -> int:
    """How many epochs take about so long on this machine, by watching a run that is then stopped."""
    print("seeing how fast this machine is ...", flush=True)
    run = tg.train(spec_of(10_000), follow=False)
    try:
        first = followed(run, lambda news: news.progress.workers == WORKERS and news.progress.training_s > 2)
        last = followed(run, lambda news: news.progress.training_s > first.progress.training_s + 4)
    finally:
        run.stop()
        with_patience(lambda: run.is_over, "the run does not stop")
    steps = last.progress.step - first.progress.step
    per_epoch = last.progress.total_steps / last.progress.epochs
    return max(10, round(seconds * steps / (last.progress.training_s - first.progress.training_s) / per_epoch))


def undisturbed(spec: Spec) -> str:
    """Train with the cluster to itself; the digest of the model."""
    print(
        f"\ntraining {spec.train.epochs} epochs undisturbed on {WORKERS} workers: what will serve, and be compared with"
    )
    version = tg.train(spec, name="undisturbed-" + os.urandom(3).hex()).wait()
    return version.digest


def through_the_tide(spec: Spec, tide: Tide) -> None:
    """Train the same again while the endpoint's traffic comes and goes."""
    rows = np.asarray(pq.read_table(spec.data.source.path).slice(0, ROWS).column("pixels").to_pylist())
    print("\nthe same once more, beside the endpoint; two clients ask it now and then")
    run = tg.train(spec, name="tide-" + os.urandom(3).hex(), follow=False)
    shown = Shown()
    with load(rows[:1], tide, clients=2, pause_s=0.5):
        with_patience(lambda: shown.devices(training=WORKERS), "the run does not start", run)
        calm = time.time()
        with_patience(lambda: shown.devices() and time.time() - calm > CALM_S, "", run)
        tide.lent_before = lent(shown.report.timeline, calm)
        flood(rows, run, shown, tide)
        went = time.time()
        with_patience(lambda: shown.devices(training=WORKERS, serving=1), "the run does not get its devices back", run)
        tide.seconds_to_return = time.time() - went
        totals = run.status().totals
        tide.steps_twice, tide.resizes = totals.steps_twice, totals.resizes
        print(f"{shown.clock()}  waiting for the run to end ...", flush=True)
        tide.digest = run.wait().digest
    shown.devices()
    tide.samples = [sample for sample in shown.report.timeline if sample.at > calm - CALM_S]
    tide.picture = str(settings.home() / "tide.png")
    Report(shown.report.device, timeline=tide.samples).plot(tide.picture)


def flood(rows: np.ndarray, run: tg.Run, shown: Shown, tide: Tide) -> None:
    """Clients come, stay until the endpoint has grown and a while longer, and go."""
    print(f"{shown.clock()}  {CLIENTS} clients come, {ROWS} rows a request", flush=True)
    came = time.time()
    with load(rows, tide, CLIENTS):
        with_patience(lambda: shown.devices(serving=REPLICAS), "the endpoint does not grow", run)
        tide.seconds_to_grow = time.time() - came
        there = time.time()
        with_patience(lambda: shown.devices() and time.time() - there > LOAD_S, "", run)
    print(f"{shown.clock()}  they have gone", flush=True)


class Shown:
    """Tells what changes: the devices, and what the arbiter decides."""

    def __init__(self) -> None:
        self.began = time.time()
        self.report = tg.capacity_report()
        self._told: set[Event] = set(self.report.events)
        self._line = ""

    def devices(self, training: int | None = None, serving: int | None = None) -> bool:
        """Whether so many are with training and serving now."""
        self.report = tg.capacity_report()
        for event in self.report.events:
            if event not in self._told:
                self._told.add(event)
                print(f"{self.clock()}  {event.who}: {event.what}", flush=True)
        now = self.report.timeline[-1]
        rest = now.changing + now.other + now.free
        line = f"{'T' * round(now.training)}{'S' * round(now.serving)}{'.' * round(rest)}"
        if line != self._line:
            self._line = line
            print(f"{self.clock()}  [{line}]  {now.training:g} training, {now.serving:g} serving", flush=True)
        return training in (None, now.training) and serving in (None, now.serving)

    def clock(self) -> str:
        return f"{time.time() - self.began:6.1f} s"


@contextmanager
def load(rows: np.ndarray, tide: Tide, clients: int, pause_s: float = 0.0) -> Iterator[None]:
    """`clients` that ask over HTTP, each again as soon as it is answered and `pause_s` are over."""
    local = cluster.current()
    assert local is not None
    going = [True]

    def ask() -> int:
        answered = 0
        with tg.Client(local.serve_url, timeout_s=60) as client:
            while going[0]:
                time.sleep(pause_s)
                try:
                    client.predict("digits", {"pixels": rows})
                    answered += 1
                except TidegateError as error:
                    tide.failed, tide.failure = tide.failed + 1, str(error)
        return answered

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask) for _ in range(clients)]
        try:
            yield
        finally:
            going[0] = False
    tide.answered += sum(each.result() for each in asked)


def lent(samples: list[Sample], since: float) -> float:
    """Of the CPUs that no replica held, the share that training held since then."""
    calm = [sample for sample in samples if sample.at >= since]
    return float(np.mean([sample.training / (CPUS - sample.serving) for sample in calm]))


def followed(run: tg.Run, true: Callable[[News], bool]) -> News:
    """The status of a run of this process, as soon as it is so."""
    found: list[News] = []

    def there() -> bool:
        try:
            found.append(run.status())
        except NotFoundError:
            return False
        return true(found[-1])

    with_patience(there, f"run {run.name} does not train", run)
    return found[-1]


def with_patience(true: Callable[[], bool], otherwise: str, run: tg.Run | None = None) -> None:
    """Return when it is so. Raises what ended the run before."""
    until = time.monotonic() + PATIENCE_S
    while not true():
        if run is not None and run.is_over:
            run.wait()
            raise TidegateError("the run was over before the tide", remedy="give it more --epochs")
        if time.monotonic() > until:
            raise TidegateError(f"{otherwise} for {PATIENCE_S:g} s", remedy="see what else this machine does")
        time.sleep(0.25)


def tell(tide: Tide) -> None:
    """The summary."""
    print(f"\n{tide.answered:,} requests answered, {tide.failed} failed {tide.failure}")
    print(f"before they came training held {tide.lent_before:.0%} of what the endpoint left over")
    print(f"{tide.seconds_to_grow:.1f} s from the first client to {REPLICAS} replicas")
    print(f"{tide.seconds_to_return:.1f} s from the last client to {WORKERS} workers again")
    print(f"{tide.resizes} resizes, {tide.steps_twice} steps computed twice")
    same = "the same, bit for bit" if tide.is_equal else "NOT the same"
    print(f"model undisturbed {tide.undisturbed[:12]}, through the tide {tide.digest[:12]}: {same}")
    print(f"devices over time: {tide.picture}")


if __name__ == "__main__":
    sys.exit(main())
