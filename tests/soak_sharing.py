"""Half an hour of sharing on five small nodes: random spikes, and every 30 s something is killed.

    python tests/soak_sharing.py [--minutes 30] [--seed N]

Two runs and somebody's own Serve application share six logical CPUs. Spikes of random height and length come and go; in
between a worker, a replica, the arbiter or a whole node (which comes back) is killed. At the end the runs may finish,
and it must hold, or the script exits with 1:

- at no look a run had workers fewer than its minimum or more than its maximum;
- after every spike and every kill serving got all the replicas that it wanted;
- no request failed but those that were with a replica, or on its way to one, when it was killed;
- both runs ended with the weights of an undisturbed one, every row counted once an epoch, and nothing is held any more.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

from audit_ledger import audit
from histories import totals_of
from live_runs import DIGITS, InThread, digest, fit, ignore, on_disk, paced, spec_of, workers_of
from local_ray import own_surroundings, quiet
from tide import ARBITER, own_handle, process_of, replicas, slow_application, wanted_replicas
from tidegate import ray_internals, settings
from tidegate.cluster import NAMESPACE
from tidegate.data.prepare import prepare
from tidegate.scheduling import arbiter
from tidegate.spec.run import Spec
from tidegate.training import control

STEPS_PER_S, STEPS_PER_EPOCH = 10, 24
"""Of a paced run, at most."""
RUNS = {"first": (2, 4), "second": (1, 2)}
MOST_REPLICAS = 4
KILL_EVERY_S = 30.0
HURT_S = 40.0
"""A request that began so long after a replica was killed must not fail. A busy machine's lost node is noticed late."""
ENDS_S = 1200.0
"""Within which a run ends once nothing holds it up: kills have left most of its steps for then."""
SETTLED_S = 150.0
"""Within which serving has what it wants, whatever was killed."""


class Broken(Exception):
    """Something that must hold did not."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    try:
        with cluster() as (nodes, folder):
            Soak(nodes, folder, random.Random(options.seed)).run(60 * options.minutes)
    except Broken as error:
        print(f"broken: {error}")
        return 1
    print("all of it held")
    return 0


@contextmanager
def cluster() -> Iterator[tuple[Cluster, Path]]:
    """A head with two CPUs and four nodes with one each."""
    with own_surroundings() as folder:
        os.environ["TIDEGATE_LEDGER"] = str(folder / "ledger")
        (folder / "ledger").mkdir()
        head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": str(folder / "r")}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=nodes.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            quiet()
            (settings.home() / arbiter.RULES).write_text("cool_down_s: 3\n")
            serve.start(proxy_location="Disabled")
            arbiter.ensure()
            yield nodes, folder
        finally:
            del os.environ["TIDEGATE_LEDGER"]
            # Threads of Serve's handles outlive it and complain.
            logging.disable(logging.ERROR)
            serve.shutdown()
            ray.shutdown()
            nodes.shutdown()


class Soak:
    """What goes on, and what was seen of it."""

    def __init__(self, nodes: Cluster, folder: Path, luck: random.Random) -> None:
        self.nodes, self.folder, self.luck = nodes, folder, luck
        self.killed: Counter[str] = Counter()
        self.answered = self.lost = self.looks = self.spikes = 0
        self.wrong: list[str] = []
        self.clients = 0
        self.last_kill = float("-inf")
        self.over = threading.Event()
        self.started = time.monotonic()
        self.addresses = iter(range(2, 250))
        self.workers_nodes = [self.another_node() for _ in range(4)]

    def run(self, seconds: float) -> None:
        gate = self.folder / "gate"
        gate.touch()
        epochs = 20 + round(1.1 * seconds * STEPS_PER_S / STEPS_PER_EPOCH)
        specs = {name: digits(bounds, epochs) for name, bounds in RUNS.items()}
        prepared = prepare(specs["first"], ignore)
        alone = digest(fit(digits((1, 1), epochs), prepared, "alone"))
        for file in (self.folder / "ledger").iterdir():
            file.unlink()
        with (
            slow_application(MOST_REPLICAS),
            InThread(specs["first"], prepared, "first", loop=paced(gate, 1 / STEPS_PER_S)) as first,
            InThread(specs["second"], prepared, "second", loop=paced(gate, 1 / STEPS_PER_S)) as second,
        ):
            threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(12)]
            threads += [threading.Thread(target=self.look)]
            for thread in threads:
                thread.start()
            try:
                self.disturb(seconds)
                self.clients = 0
                gate.unlink()
                for run in (first, second):
                    self.check(digest(run.final(ENDS_S)) == alone, f"{run.run} ended with other weights")
            finally:
                self.over.set()
                for thread in threads:
                    thread.join()
            self.account(specs, prepared)

    def disturb(self, seconds: float) -> None:
        """Spikes and kills until the time is up."""
        until, next_kill = time.monotonic() + seconds, time.monotonic() + KILL_EVERY_S
        while time.monotonic() < until:
            self.clients, self.spikes = self.luck.choice([0, 1, 3, 6, 12]), self.spikes + 1
            self.say(f"{self.clients} clients")
            pause = time.monotonic() + self.luck.uniform(10, 60)
            while time.monotonic() < min(pause, until):
                if time.monotonic() > next_kill:
                    next_kill += KILL_EVERY_S
                    self.kill()
                time.sleep(0.5)
            self.until(lambda: replicas() >= wanted_replicas(), "serving has what it wants")
            if self.wrong:
                raise Broken("; ".join(self.wrong[:5]))

    def kill(self) -> None:
        ways = [self.kill_worker, self.kill_replica, self.kill_arbiter, self.kill_node]
        what: Callable[[], None] = self.luck.choice(ways)
        if what in (self.kill_replica, self.kill_node):
            self.last_kill = time.monotonic()
        what()
        self.killed[what.__name__.removeprefix("kill_")] += 1
        self.say(f"killed: {what.__name__.removeprefix('kill_')}")

    def kill_worker(self) -> None:
        run = self.luck.choice(list(RUNS))
        if pids := workers_of(run, self.folder / "ledger"):
            os.kill(self.luck.choice(pids), signal.SIGKILL)

    def kill_replica(self) -> None:
        applications = ray_internals.serve_details()["applications"].values()
        pids = [
            r["pid"] for a in applications for d in a["deployments"].values() for r in d["replicas"] if r.get("pid")
        ]
        if pids:
            os.kill(self.luck.choice(pids), signal.SIGKILL)

    def kill_arbiter(self) -> None:
        os.kill(process_of(ARBITER), signal.SIGKILL)

    def kill_node(self) -> None:
        """A node goes without notice, and another one comes for it."""
        gone = self.workers_nodes.pop(self.luck.randrange(len(self.workers_nodes)))
        self.nodes.remove_node(gone, allow_graceful=False)
        self.workers_nodes.append(self.another_node())

    def another_node(self) -> Any:
        return self.nodes.add_node(num_cpus=1, node_ip_address=f"127.0.0.{next(self.addresses)}")

    def ask(self, number: int) -> None:
        """One client, which asks while its number is among those that are wanted."""
        handle = own_handle()
        while not self.over.is_set():
            if number >= self.clients:
                time.sleep(0.1)
                continue
            asked = time.monotonic()
            try:
                handle.remote(0.2).result(timeout_s=120)
                self.answered += 1
            except Exception as error:  # noqa: BLE001 - counted, or told
                self.lost += 1
                if asked - self.last_kill > HURT_S:
                    self.wrong.append(f"a request failed though nothing was killed: {type(error).__name__}: {error}")

    def look(self) -> None:
        """Every moment: no run is smaller or larger than it may be."""
        while not self.over.is_set():
            for name, (low, high) in RUNS.items():
                news = control.status(name) if name in control.going_on() else None
                workers = news.progress.workers if news else 0
                if workers and not low <= workers <= high:
                    self.wrong.append(f"{name} has {workers} workers")
            self.looks += 1
            time.sleep(1)

    def account(self, specs: dict[str, Spec], prepared: Any) -> None:
        """What was promised is checked, and what was seen is told."""
        for name, spec in specs.items():
            own = self.folder / f"ledger-{name}"
            own.mkdir()
            for file in (self.folder / "ledger").glob(f"{name}-*"):
                file.rename(own / file.name)
            found, totals = audit(own, prepared, spec), totals_of(name)
            print(f"{name}: {found.rows} rows, each once an epoch; {totals}")
        self.check(not self.wrong, "; ".join(self.wrong[:5]))
        print(f"{self.spikes} spikes, {self.answered} requests answered, {self.lost} lost with what was killed")
        print(f"killed: {dict(self.killed)}; {self.looks} looks at the runs")
        self.until(lambda: ray.available_resources().get("CPU", 0) >= 6 - replicas(), "all is given back")

    def check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Broken(otherwise)

    def until(self, true: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + SETTLED_S
        while not true():
            if time.monotonic() > until:
                raise Broken(f"not within {SETTLED_S:g} s: {what}\n{arbiter.report().explain()}")
            time.sleep(0.2)

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self.started:7.1f} s  {line}", flush=True)


def digits(workers: tuple[int, int], epochs: int) -> Spec:
    return on_disk(spec_of(DIGITS, workers, epochs=epochs, shards=4, checkpoint={"every_s": 2.0}))


if __name__ == "__main__":
    sys.exit(main())
