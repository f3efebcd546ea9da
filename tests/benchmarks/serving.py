"""An endpoint behind HAProxy against bare Starlette with the model in the handler: requests/s at 16 connections.

Both sides answer the same JSON request, a row of 784 numbers, with the same MLP 784-128-10 on one thread, one worker or
replica. Needs wrk.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from pairs import compare

PEERS = Path(__file__).parent / "peers"
ENDPOINT_PORT, PEER_PORT = 18000, 18100
WANTED = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=8)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("error: wrk is not installed (Debian: apt-get install wrk)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as folder:
        os.environ.update(HOME=folder, TIDEGATE_HOME=f"{folder}/kept", OMP_NUM_THREADS="1")
        with peer(), endpoint(Path(folder)) as url:

            def load(address: str) -> float:
                return requests_per_s(address, options.connections, options.seconds)

            load(url), load(peer_url())
            name = f"serving, {options.connections} connections"
            reached = compare(name, lambda: load(url), lambda: load(peer_url()), pairs=options.pairs, wanted=WANTED)
    return 0 if reached else 1


def peer_url() -> str:
    return f"http://127.0.0.1:{PEER_PORT}/infer"


@contextmanager
def peer() -> Iterator[None]:
    command = [sys.executable, "-m", "uvicorn", "starlette_mlp:app", "--port", str(PEER_PORT), "--log-level", "error"]
    with subprocess.Popen(command, cwd=PEERS) as process:
        try:
            wait_for(f"http://127.0.0.1:{PEER_PORT}/")
            yield
        finally:
            process.terminate()


@contextmanager
def endpoint(folder: Path) -> Iterator[str]:
    """An endpoint with the peer's network (random weights: they cost the same as trained ones)."""
    from tidegate import cluster, connection

    cluster.up(serve_port=ENDPOINT_PORT, auth="disabled")
    try:
        connection.connect()
        from training import source, spec_of

        import tidegate as tg

        spec = spec_of("mlp", source(folder))
        spec = spec.model_copy(update={"train": spec.train.model_copy(update={"epochs": 1})})
        tg.train(spec).wait()
        yield tg.deploy(tg.Endpoint(name="mlp", model="mlp")).url + "/infer"
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


def requests_per_s(url: str, connections: int, seconds: int) -> float:
    """Answered requests a second. Raises when one failed."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(PEERS / "load.lua"), "--latency", url]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+) requests/s, .* (\d+) failed", printed)
    assert found is not None, printed
    assert found.group(2) == "0", printed
    return float(found.group(1))


if __name__ == "__main__":
    sys.exit(main())
