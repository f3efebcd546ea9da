"""An endpoint behind HAProxy against bare Starlette with the model in the handler, which the clients ask directly.

Both sides answer with the same MLP 784-128-10 on one thread, one worker or replica. The endpoint's side takes keys
alone, has limits, checks each request and counts it, as any does whose tenants have limits. Needs wrk.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import orjson
from open_loop import offer, post
from pairs import judged, shown

PEERS = Path(__file__).parent / "peers"
ENDPOINT_PORT, PEER_PORT = 18000, 18100
BATCH_ROWS = 64
_Headers = dict[str, str]


@dataclass(frozen=True)
class Side:
    """One server, and what it is asked: the file with the body, and the headers that go with it."""

    url: str
    body: Path
    headers: _Headers


@dataclass(frozen=True)
class Load:
    """What wrk saw: requests a second, and times in microseconds."""

    per_s: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Case:
    """A figure of both sides. `at_least` or `at_most`: what the ratio of ours to theirs should be."""

    name: str
    figure: Callable[[Side, int], float]
    is_batch: bool = False
    at_least: float | None = None
    at_most: float | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--only", default="", help="measure only what has this in its name")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("error: wrk is not installed (Debian: apt-get install wrk)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as name:
        folder = Path(name)
        os.environ.update(HOME=name, TIDEGATE_HOME=f"{name}/kept", OMP_NUM_THREADS="1")
        with peer() as theirs, endpoint(folder) as (ours, key):
            sides = {is_batch: both(folder, ours, theirs, key, is_batch=is_batch) for is_batch in (False, True)}
            for side in sides[False]:
                wrk(side, 16, options.seconds)
            half = wrk(sides[False][1], 16, options.seconds).per_s / 2
            print(f"serving: half of Starlette's saturation is {half:,.0f} requests/s", flush=True)
            reached = [
                compared(case, *sides[case.is_batch], options.pairs, options.seconds)
                for case in cases(half)
                if options.only in case.name
            ]
    return 0 if all(reached) else 1


def cases(half: float) -> list[Case]:
    return [
        Case("requests/s, 16 connections", lambda side, s: wrk(side, 16, s).per_s, at_least=0.8),
        Case("requests/s, 64 connections", lambda side, s: wrk(side, 64, s).per_s, at_least=0.8),
        Case("p50 in us, 1 connection", lambda side, s: wrk(side, 1, s).p50, at_most=1.5),
        Case("p99 in us at half of saturation", lambda side, s: offered_p99(side, half, s), at_most=1.5),
        Case(
            f"rows/s by {BATCH_ROWS}, ours binary, theirs JSON",
            lambda side, s: BATCH_ROWS * wrk(side, 16, s).per_s,
            is_batch=True,
            at_least=2.0,
        ),
    ]


def compared(case: Case, ours: Side, theirs: Side, pairs: int, seconds: int) -> bool:
    name = f"serving, {case.name}"
    ratios = [
        shown(name, number, case.figure(ours, seconds), case.figure(theirs, seconds)) for number in range(1, pairs + 1)
    ]
    return judged(name, ratios, at_least=case.at_least, at_most=case.at_most)


def both(folder: Path, ours: str, theirs: str, key: str, *, is_batch: bool) -> tuple[Side, Side]:
    """The same rows for either side."""
    from tidegate.protocol import HEADER_LENGTH, encode_request

    dice = random.Random(0)
    shape = [BATCH_ROWS if is_batch else 1, 784]
    rows = [[round(dice.random(), 4) for _ in range(784)] for _ in range(shape[0])]
    # As Starlette's handler wants them: nested for several rows, flat for one.
    document = {"name": "x", "shape": shape, "datatype": "FP32", "data": rows if is_batch else rows[0]}
    plain, packed = folder / f"plain-{shape[0]}", folder / f"packed-{shape[0]}"
    plain.write_bytes(orjson.dumps({"inputs": [document]}))
    headers = {"Authorization": f"Bearer {key}"}
    if not is_batch:
        return Side(ours, plain, headers), Side(theirs, plain, {})
    body = encode_request({"x": np.array(rows, "float32")}, as_json=False)
    packed.write_bytes(body.content)
    return Side(ours, packed, {**headers, HEADER_LENGTH: str(body.header_length)}), Side(theirs, plain, {})


def wrk(side: Side, connections: int, seconds: int) -> Load:
    """Each connection asks again once it is answered. Raises when a request failed."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(PEERS / "load.lua"), "--latency", side.url]
    headers = "\n".join(f"{name}: {value}" for name, value in side.headers.items())
    environment = {**os.environ, "BODY": str(side.body), "HEADERS": headers}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    found = re.search(r"(\d+) requests/s, p50 (\d+) us, p99 (\d+) us, (\d+) failed", printed)
    assert found is not None, printed
    assert found[4] == "0", printed
    return Load(float(found[1]), float(found[2]), float(found[3]))


def offered_p99(side: Side, rate: float, seconds: int) -> float:
    """Microseconds, of requests that come at that rate whatever became of those before. Raises when one failed."""
    answers = offer(side.url, post(side.url, side.body.read_bytes(), side.headers), rate, seconds)
    assert set(answers.statuses) == {200}, answers.statuses
    assert not answers.lost
    return answers.quantile(0.99) * 1e6


@contextmanager
def peer() -> Iterator[str]:
    command = [sys.executable, "-m", "uvicorn", "starlette_mlp:app", "--port", str(PEER_PORT), "--log-level", "error"]
    with subprocess.Popen(command, cwd=PEERS) as process:
        try:
            wait_for(f"http://127.0.0.1:{PEER_PORT}/")
            yield f"http://127.0.0.1:{PEER_PORT}/infer"
        finally:
            process.terminate()


@contextmanager
def endpoint(folder: Path) -> Iterator[tuple[str, str]]:
    """An endpoint with the peer's network (random weights: they cost the same as trained ones), and a key for it."""
    from tidegate import cluster, connection

    cluster.up(serve_port=ENDPOINT_PORT, auth="disabled")
    try:
        connection.connect()
        from training import source, spec_of

        import tidegate as tg

        spec = spec_of("mlp", source(folder))
        spec = spec.model_copy(update={"train": spec.train.model_copy(update={"epochs": 1})})
        tg.train(spec).wait()
        access = {"tenants": {"bench": {"requests_per_s": 1_000_000, "concurrent": 100_000}}}
        key = tg.create_key("bench")[1]
        url = tg.deploy(tg.Endpoint.model_validate({"name": "mlp", "model": "mlp", "access": access})).url
        yield f"{url}/infer", key
    finally:
        cluster.down()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urlopen(url, timeout=1)
            return
        except URLError as error:
            if hasattr(error, "code"):
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
