"""Five times as many requests as an endpoint can answer, for a minute: what becomes of those that it takes.

The model's pass takes 20 ms of waiting (peers/paced.py) for at most four rows: the sender and HAProxy have the cores to
themselves, as beside a GPU. Its capacity is what 32 clients get who each ask again once they are answered. The same is
then offered as Poisson's arrivals ("at capacity"), then five times that, then half.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from open_loop import Answers, offer, post

PEERS = Path(__file__).parent / "peers"
PORT = 18000
BODY = json.dumps({"inputs": [{"name": "value", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}).encode()
CLIENTS = 32
TIMES = 5
QUEUE = 64
MOST_P99, MOST_GROWTH, CALM_AFTER_S = 2.0, 0.05, 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as folder:
        os.environ.update(HOME=folder, TIDEGATE_HOME=f"{folder}/kept", OMP_NUM_THREADS="1", PYTHONPATH=str(PEERS))
        with endpoint() as url:
            return 0 if measure(url, options.seconds) else 1


def measure(url: str, seconds: int) -> bool:
    request = post(url, BODY, {})
    capacity = closed_loop(url, seconds / 6)
    print(f"capacity: {capacity:.0f} requests/s, {CLIENTS} clients", flush=True)
    at = shown("at capacity", offer(url, request, capacity, seconds, seed=1))
    before = memory()
    with watched() as most_waiting:
        over = shown(f"{TIMES} times that", offer(url, request, TIMES * capacity, seconds, seed=2))
    growth = memory() / before - 1
    offer(url, request, capacity / 2, CALM_AFTER_S, seed=3)
    after = shown(f"half of it, {CALM_AFTER_S:g} s later", offer(url, request, capacity / 2, seconds / 6, seed=4))
    refused = sum(over.statuses.values()) - over.statuses[200]
    ratio = over.quantile(0.99) / at.quantile(0.99)
    return all(
        [
            said(f"p99 of the admitted {ratio:.2f} times that at capacity", ratio <= MOST_P99),
            said(f"{over.refused} of {refused} refused with Retry-After, {over.lost} lost", over.refused == refused),
            said(f"memory of the replica grew by {growth:.1%}", growth <= MOST_GROWTH),
            said(f"at most {max(most_waiting)} requests waited, the bound is {QUEUE}", max(most_waiting) <= QUEUE),
            said("as before afterwards", after.quantile(0.99) <= at.quantile(0.99) and not after.refused),
        ]
    )


def said(what: str, is_so: bool) -> bool:
    print(f"overload: {what}: {'reached' if is_so else 'MISSED'}", flush=True)
    return is_so


def shown(name: str, answers: Answers) -> Answers:
    print(
        f"{name}: answered {dict(answers.statuses)}, p50 {answers.quantile(0.5) * 1000:.0f} ms,"
        f" p99 {answers.quantile(0.99) * 1000:.0f} ms, {answers.lost} lost",
        flush=True,
    )
    return answers


def closed_loop(url: str, seconds: float) -> float:
    """Answered requests a second."""
    stop, counts = threading.Event(), [0] * CLIENTS

    def client(place: int) -> None:
        with httpx.Client(trust_env=False) as http:
            while not stop.is_set():
                http.post(url, content=BODY).raise_for_status()
                counts[place] += 1

    threads = [threading.Thread(target=client, args=(place,)) for place in range(CLIENTS)]
    for thread in threads:
        thread.start()
    stop.wait(2)
    before = sum(counts)
    stop.wait(seconds)
    after = sum(counts)
    stop.set()
    for thread in threads:
        thread.join()
    return (after - before) / seconds


def memory() -> int:
    """Bytes that the replica holds for itself."""
    from tidegate import ray_internals

    (replica,) = ray_internals.serve_details()["applications"]["tidegate.paced"]["deployments"]["replica"]["replicas"]
    pages = int(Path(f"/proc/{replica['pid']}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def watched() -> Iterator[list[int]]:
    """How many requests waited at the replica, every time it tells."""
    import ray

    (node,) = ray.nodes()
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    stop, seen = threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(0.5):
            lines = httpx.get(page, trust_env=False).text.splitlines()
            told = [line for line in lines if line.startswith("ray_tidegate_waiting_requests{")]
            seen.extend(int(float(line.rpartition(" ")[2])) for line in told)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@contextmanager
def endpoint() -> Iterator[str]:
    import numpy as np

    import tidegate as tg
    from tidegate import cluster, connection

    sys.path.insert(0, str(PEERS))
    from paced import Paced

    cluster.up(serve_port=PORT, auth="disabled")
    try:
        connection.connect()
        tg.register(Paced(), name="paced", example={"value": np.zeros((2, 3), "float32")})
        limits, batch = {"queue": QUEUE}, {"max_rows": 4}
        spec = {"name": "paced", "model": "paced", "limits": limits, "batch": batch}
        yield tg.deploy(tg.Endpoint.model_validate(spec)).url + "/infer"
    finally:
        cluster.down()


if __name__ == "__main__":
    sys.exit(main())
