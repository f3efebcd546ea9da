"""A scale-out that takes devices from a run against the same on an idle cluster: seconds from the autoscaler's decision
to the last replica running, 1 -> 3 replicas of a CPU each on 4 CPUs, wanted at most 1.5 times. Then the way back.

The application is not Tidegate's, and its requests only sleep: what is compared is who gets the devices, not who gets
the two cores of a small machine. The run (the CNN of training.py, 1 to 3 workers) holds all that the application leaves
over when the traffic comes; on the idle side there is no run.

The way back by phase: from the moment when the last replica that was too much has gone to the arbiter's decision, to
the durable checkpoint, and to the first step at full size. The cool-down is a rule and set to 2 s here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pairs import judged, shown
from resize import Run
from training import own_cluster

WANTED = 1.5
CPUS, REPLICAS, CLIENTS = 4, 3, 6
COOL_DOWN_S = 2
SLEEP_S = 0.2
LOOK_S = 0.05
AT_MOST_S = 180.0
APPLICATION = "sleeper"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    with own_cluster(CPUS) as home:
        handle = prepared()
        scale_out(handle)  # what is done for the first time is not compared
        ratios, backs = [], []
        for number in range(1, options.pairs + 1):
            with Run(home, (1, CPUS - 1)) as run:
                run.settle(CPUS - 1)
                mine = scale_out(handle)
                backs.append(back(run))
                run.refuse_repeated_steps()
            ratios.append(shown("scale-out, s", number, mine, scale_out(handle), digits=2))
    for phase in backs[0]:
        print(f"the way back, {phase}: median {statistics.median(each[phase] for each in backs):.2f} s")
    return 0 if judged("scale-out", ratios, at_most=WANTED) else 1


def prepared() -> Any:
    """The application with one replica, the arbiter with its rules; the handle to ask it."""
    from ray import serve

    from tidegate import settings
    from tidegate.scheduling import arbiter

    (settings.home() / arbiter.RULES).write_text(f"cool_down_s: {COOL_DOWN_S}\n")
    arbiter.ensure()

    class Sleeper:
        def __call__(self) -> None:
            time.sleep(SLEEP_S)

    scaling = {"min_replicas": 1, "max_replicas": REPLICAS, "target_ongoing_requests": 1}
    soon = {"upscale_delay_s": 0, "downscale_delay_s": 1, "look_back_period_s": 2, "metrics_interval_s": 1}
    deployment = serve.deployment(Sleeper, ray_actor_options={"num_cpus": 1}, autoscaling_config=scaling | soon)
    return serve.run(deployment.bind(), name=APPLICATION, route_prefix="/sleeper")


def scale_out(handle: Any) -> float:
    """Seconds from the first look at which more replicas are wanted to that at which all run; then the load ends."""
    wait(lambda: seen() == (1, 1, 1))
    with load(handle):
        wait(lambda: seen()[0] == REPLICAS)
        decided = time.monotonic()
        wait(lambda: seen()[1] == REPLICAS)
        took = time.monotonic() - decided
    # Until the replicas that are too much have given back what they held.
    wait(lambda: seen() == (1, 1, 1))
    return took


def back(run: Run) -> dict[str, float]:
    """Seconds by phase from now, when the replicas have gone, until the run has its full size again."""
    from tidegate.scheduling import arbiter
    from tidegate.training import control

    gone = time.time()
    run.settle(CPUS - 1)
    told = [event for event in arbiter.report().events if event.who == run.name and event.what.startswith("takes")]
    events = dict(control.history(run.name)[-3:])
    return {
        "decided": told[-1].at - gone,
        "durable checkpoint": events["saved"] - gone,
        "first step": events["first_step"] - gone,
    }


def seen() -> tuple[int, int, int]:
    """Replicas that are wanted, that run, and that there are in any state."""
    from tidegate import ray_internals

    (deployment,) = ray_internals.serve_details()["applications"][APPLICATION]["deployments"].values()
    states = [str(getattr(replica["state"], "value", replica["state"])) for replica in deployment["replicas"]]
    return int(deployment["target_num_replicas"]), states.count("RUNNING"), len(states)


@contextmanager
def load(handle: Any) -> Iterator[None]:
    """Clients that ask one request after the other."""
    going = [True]

    def ask() -> None:
        while going[0]:
            handle.remote().result(timeout_s=60)

    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask) for _ in range(CLIENTS)]
        try:
            yield
        finally:
            going[0] = False
    for each in asked:
        each.result()


def wait(true: Any) -> None:
    until = time.monotonic() + AT_MOST_S
    while not true():
        if time.monotonic() > until:
            raise TimeoutError(f"wanted, running and all replicas are {seen()}")
        time.sleep(LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
