"""The demo on every kind of cluster: `ray.init` or `ray start`, with a token or open, with HAProxy or without."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ports import free_port
from stranger import BIN, Stranger
from tidegate.cluster import listens
from tidegate.cluster_environment import NODE_FLAGS

INIT = "import ray, runpy; ray.init('local', num_cpus=4); runpy.run_path('jobs/demo.py', run_name='__main__')"
RIGHT = 0.9


def in_a_program(stranger: Stranger, *, token: bool, haproxy: bool) -> None:
    """The demo in a program that has called ray.init."""
    variables = flags(stranger, token=token, haproxy=haproxy)
    demo(stranger, "python", "-c", INIT, "--port", str(free_port()), **variables)


def on_a_persons_cluster(stranger: Stranger, *, token: bool, haproxy: bool) -> None:
    """The demo on a cluster that somebody has started with `ray start`."""
    variables = flags(stranger, token=token, haproxy=haproxy)
    if token:
        stranger.run("ray", "get-auth-token", "--generate")
    with started(stranger, variables) as address:
        wait_for(address)
        auth = {"RAY_AUTH_MODE": variables["RAY_AUTH_MODE"]}
        demo(stranger, "python", "jobs/demo.py", "--port", str(free_port()), RAY_ADDRESS=address, **auth)


def flags(stranger: Stranger, *, token: bool, haproxy: bool) -> dict[str, str]:
    """What a person has exported. Ports and sockets of HAProxy are moved out of the way of other clusters here."""
    found = {"RAY_AUTH_MODE": "token" if token else "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    if not haproxy:
        return found
    inside = stranger.home.parent / "h"
    inside.mkdir()
    places = {"CONFIG_FILE_LOC": "cfg", "SOCKET_PATH": "s", "METRICS_SOCKET_PATH": "m", "SERVER_STATE_FILE": "state"}
    found |= {name: value for name, value in NODE_FLAGS.items() if name.startswith("RAY_SERVE")} | found
    found |= {f"RAY_SERVE_HAPROXY_{name}": str(inside / place) for name, place in places.items()}
    found["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"] = str(inside)
    return found | {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}


@contextmanager
def started(stranger: Stranger, variables: dict[str, str]) -> Iterator[str]:
    """A cluster that a person started with `ray start`; its address."""
    port, log = free_port(), stranger.home / "ray.log"
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4", f"--port={port}"]
    command += [f"--dashboard-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    command += ["--node-ip-address=127.0.0.1", f"--temp-dir={stranger.home.parent / 'r'}"]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=stranger.environment | variables, stdout=out, stderr=out, start_new_session=True
        )
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def wait_for(address: str) -> None:
    deadline = time.monotonic() + 60
    while not listens(address):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def demo(stranger: Stranger, *command: str, **variables: str) -> None:
    done = stranger.run(*command, **variables)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("asked http://")]
    share = line.rpartition(": ")[2].removesuffix("% right")
    assert float(share) / 100 > RIGHT, line
    assert "Traceback" not in done.stderr, done.stderr
