"""An endpoint behind HAProxy against bare Starlette with the model in the handler, which the clients ask directly.

Both sides answer with the same MLP 784-128-10 on one thread, one worker or replica. The endpoint's side takes keys
alone, has limits, checks each request and counts it, as any does whose tenants have limits. Needs wrk. Measured:

    json-16, json-64    requests/s of one JSON row, at so many connections
    p50                 of one JSON row at one connection
    p99                 of one JSON row at a constant rate: half of what saturates Starlette, as measured for each pair
    batch               rows/s in batches of 64 rows at 16 connections: binary ones against Starlette's in JSON
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import httpx
import numpy as np
import orjson
from load import CONNECTIONS, RequestsFailed, Side, p99_at, wrk
from pairs import judged, shown
from training import PEERS, own_cluster, source, spec_of

PEER_PORT = 18100
BATCH_ROWS = 64
Pair = tuple[float, float]


@dataclass(frozen=True)
class Case:
    """A figure of both sides, ours first. `at_least` or `at_most`: what the ratio of ours to theirs should be."""

    name: str
    measure: Callable[[Side, Side, int], Pair]
    rows: int = 1
    at_least: float | None = None
    at_most: float | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; may be repeated")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("error: wrk is not installed (Debian: apt-get install wrk)", file=sys.stderr)
        return 2
    with own_cluster() as home, peer() as theirs:
        ours, key = endpoint(home)
        chosen = [CASES[name] for name in options.case or CASES]
        sides = {case.rows: both(home, ours, theirs, key, case.rows) for case in chosen}
        for side in (side for pair in sides.values() for side in pair):
            warm_up(side, options.seconds)
        reached = [compared(case, *sides[case.rows], options.pairs, options.seconds) for case in chosen]
    return 0 if all(reached) else 1


def compared(case: Case, ours: Side, theirs: Side, pairs: int, seconds: int) -> bool:
    name = f"serving, {case.name}"
    try:
        ratios = [shown(name, number, *case.measure(ours, theirs, seconds)) for number in range(1, pairs + 1)]
    except RequestsFailed as error:
        print(f"{name}: {error}: MISSED", flush=True)
        return False
    return judged(name, ratios, at_least=case.at_least, at_most=case.at_most)


def requests_per_s(connections: int) -> Callable[[Side, Side, int], Pair]:
    return lambda ours, theirs, s: (wrk(ours, connections, s).per_s, wrk(theirs, connections, s).per_s)


def p50(ours: Side, theirs: Side, seconds: int) -> Pair:
    return wrk(ours, 1, seconds).p50, wrk(theirs, 1, seconds).p50


def p99_at_half(ours: Side, theirs: Side, seconds: int) -> Pair:
    half = wrk(theirs, CONNECTIONS, seconds).per_s / 2
    print(f"serving: half of Starlette's saturation is {half:,.0f} requests/s", flush=True)
    return p99_at(ours, half, seconds), p99_at(theirs, half, seconds)


def rows_per_s(ours: Side, theirs: Side, seconds: int) -> Pair:
    mine, other = requests_per_s(CONNECTIONS)(ours, theirs, seconds)
    return BATCH_ROWS * mine, BATCH_ROWS * other


CASES = {
    "json-16": Case("requests/s, 16 connections", requests_per_s(16), at_least=0.8),
    "json-64": Case("requests/s, 64 connections", requests_per_s(64), at_least=0.8),
    "p50": Case("p50 in us, 1 connection", p50, at_most=1.5),
    "p99": Case("p99 in us at half of saturation", p99_at_half, at_most=1.5),
    "batch": Case(f"rows/s by {BATCH_ROWS}, ours binary, theirs JSON", rows_per_s, BATCH_ROWS, at_least=2.0),
}


def both(folder: Path, ours: str, theirs: str, key: str, count: int) -> tuple[Side, Side]:
    """The same rows for either side; several are binary for ours."""
    dice = random.Random(0)
    rows = [[round(dice.random(), 4) for _ in range(784)] for _ in range(count)]
    plain = folder / f"plain-{count}"
    plain.write_bytes(json_body(rows))
    as_json, keyed = {"Content-Type": "application/json"}, {"Authorization": f"Bearer {key}"}
    if count == 1:
        return Side(ours, plain, {**as_json, **keyed}), Side(theirs, plain, as_json)
    return binary_side(folder / f"packed-{count}", ours, rows, keyed), Side(theirs, plain, as_json)


def json_body(rows: Sequence[Sequence[float]]) -> bytes:
    """As Starlette's handler wants it: nested for several rows, flat for one."""
    data = rows if len(rows) > 1 else rows[0]
    return orjson.dumps({"inputs": [{"name": "x", "shape": [len(rows), 784], "datatype": "FP32", "data": data}]})


def binary_side(path: Path, url: str, rows: Sequence[Sequence[float]], keyed: dict[str, str]) -> Side:
    from tidegate.protocol import HEADER_LENGTH, encode_request

    body = encode_request({"x": np.array(rows, "float32")}, as_json=False)
    path.write_bytes(body.content)
    kind = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(body.header_length)}
    return Side(url, path, {**kind, **keyed})


def warm_up(side: Side, seconds: int) -> None:
    """Also shows that the request is taken as it is, before anything is measured."""
    body = side.body.read_bytes()
    httpx.post(side.url, content=body, headers=side.headers, trust_env=False).raise_for_status()
    wrk(side, CONNECTIONS, seconds)


def endpoint(home: Path) -> tuple[str, str]:
    """An endpoint with the peer's network (random weights: they cost the same as trained ones), and a key for it."""
    import tidegate as tg

    spec = spec_of("mlp", source(home), epochs=1)
    tg.train(spec).wait()
    access = {"tenants": {"bench": {"requests_per_s": 1_000_000, "concurrent": 100_000}}}
    key = tg.create_key("bench")[1]
    url = tg.deploy(tg.Endpoint.model_validate({"name": "mlp", "model": "mlp", "access": access})).url + "/infer"
    status = httpx.post(url, json={}, trust_env=False).status_code
    assert status == 401, f"without a key {status}, expected 401"
    return url, key


@contextmanager
def peer() -> Iterator[str]:
    command = [sys.executable, "-m", "uvicorn", "starlette_mlp:app", "--port", str(PEER_PORT), "--log-level", "error"]
    with subprocess.Popen(command, cwd=PEERS) as process:
        try:
            wait_for(f"http://127.0.0.1:{PEER_PORT}/")
            yield f"http://127.0.0.1:{PEER_PORT}/infer"
        finally:
            process.terminate()


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
