"""What a local cluster is made of outside Ray: environment flags, ports and folder."""

from __future__ import annotations

import os
import random
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from tidegate import settings
from tidegate.errors import ClusterError

HOST = "127.0.0.1"

# The flags of every node of every cluster; cluster.yaml exports the same ones before `ray start`.
NODE_FLAGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # A request whose replica died goes to another one. Not `all-retryable-errors`: that replays 503s, which shed load.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
    # Only a request that fits can be sent again; this holds pictures.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "262144",
    # Ray would read one datagram for each request in Python, a third of a core; Tidegate has metrics of its own.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # A replica that goes keeps its devices so long, for load balancers to hear of it; HAProxy hears within a second.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # Else a replica's warnings would wait in memory for a thousand others.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    # Ray's 15 lets any other program of the node take the cores from replicas and HAProxy; runs give way by themselves.
    "RAY_worker_niceness": "5",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# What a shell exports besides; `tidegate up` writes a program of its own.
NODE_PROGRAMS = {"RAY_SERVE_HAPROXY_BINARY_PATH": "$(command -v tidegate-haproxy)"}

# Ray replaces 127.0.0.1 by the machine's outward address unless it may not form clusters of several nodes (what this
# variable says on every system, despite its name). Drivers need it as well, or they look for the cluster at the
# outward address.
LOOPBACK_FLAG = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# In the environment of every process of a cluster and its descendants; its value is the cluster's folder.
MARK = "TIDEGATE_CLUSTER"

# A caller's own connection must not leak into the cluster that is being started.
_CALLERS_OWN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_TMPDIR", "RAY_START_HOOK")

# Below the ports the kernel gives to outgoing connections and beside those of Serve's replicas (30000-31000).
_SPARE_PORTS = range(20000, 30000)

# HAProxy allows 97 characters for its socket, Linux 107 for Ray's; the names below the folder take up to 70.
_LONGEST_FOLDER = 27


@dataclass(frozen=True)
class Ports:
    """The ports of one local cluster. The defaults are Ray's; a taken one is replaced by any free one."""

    gcs: int = 6379
    dashboard: int = 8265
    client: int = 10001
    haproxy_metrics: int = 9101
    haproxy_stats: int = 8404
    fallback_http: int = 8500
    fallback_grpc: int = 9500
    grpc: int = 9000


def port_is_free(port: int) -> bool:
    """Whether nothing listens on `port`, on loopback or on all interfaces."""
    return all(_can_bind(host, port) for host in (HOST, ""))


def _can_bind(host: str, port: int) -> bool:
    with socket.socket() as probe:
        # Connections of a stopped cluster linger in TIME_WAIT; only a listener makes a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def pick_ports(reserved: Iterable[int]) -> Ports:
    """Ray's usual ports where they are free, otherwise free ones drawn at random; all different, none of `reserved`."""
    taken = set(reserved)
    chosen = {}
    for field in fields(Ports):
        chosen[field.name] = _free_port(Ports.__dict__[field.name], taken)
        taken.add(chosen[field.name])
    return Ports(**chosen)


def _free_port(preferred: int, taken: set[int]) -> int:
    # At random, so that two clusters that start together seldom try the same port.
    for port in (preferred, *random.sample(_SPARE_PORTS, 200)):
        if port not in taken and port_is_free(port):
            return port
    raise ClusterError("found no free port between 20000 and 30000", remedy="stop programs that listen there")


def make_folder() -> Path:
    """A new folder (mode 0700) with a path short enough for the sockets inside it."""
    parent = tempfile.gettempdir()
    if len(parent) + len("/tidegate-xxxxxxxx") > _LONGEST_FOLDER:
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="tidegate-", dir=parent))


def ray_folder(folder: Path) -> Path:
    """Where Ray keeps its session. Ray opens this one to every user, so it lies inside the private one."""
    return folder / "r"


def process_environment(folder: Path, ports: Ports, auth: str) -> dict[str, str]:
    """The environment of every process of a cluster in `folder`, taken over from this process and completed."""
    inherited = {name: value for name, value in os.environ.items() if name not in _CALLERS_OWN}
    return {
        **inherited,
        **NODE_FLAGS,
        **LOOPBACK_FLAG,
        **_haproxy_environment(folder, ports),
        "RAY_AUTH_MODE": auth,
        # Draining serves clusters of several nodes; here it would only make `down` wait for 30 s.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # Ray warns drivers of more than four times this many processes: logical CPUs may well exceed the cores here.
        "RAY_worker_maximum_startup_concurrency": "16",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
        settings.GRPC_PORT.name: str(ports.grpc),
        # Entry points of jobs say `python` and mean this one.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "TIDEGATE_HOME": str(settings.home()),
        MARK: str(folder),
    }


def _haproxy_environment(folder: Path, ports: Ports) -> dict[str, str]:
    inside = folder / "h"
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(folder / "haproxy"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(inside / "cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(inside / "s"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(inside / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(inside),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(inside / "state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
    }


def write_haproxy_wrapper(folder: Path, binary: str) -> None:
    """The program Ray starts as HAProxy: `tidegate-haproxy` with `binary`, whatever PATH and PYTHONPATH Ray's have.

    Without `site`, which may take longer to start than all the rest.
    """
    source = str(Path(__file__).resolve().parents[1])
    program = f"import sys; sys.path.append({source!r}); from tidegate.haproxy import main; main({binary!r})"
    wrapper = folder / "haproxy"
    # Linux cuts an interpreter's line short and splits it at spaces, so a shell takes its place.
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-I", "-S", "-c", program])} "$@"\n')
    wrapper.chmod(0o700)


def start_command(folder: Path, ports: Ports, cpus: int, gpus: int | None) -> list[str]:
    """The `ray start` that runs a head node in the foreground. `gpus=None` lets Ray count them."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={HOST}", f"--dashboard-host={HOST}", f"--temp-dir={ray_folder(folder)}"]
    command += [
        f"--port={ports.gcs}",
        f"--dashboard-port={ports.dashboard}",
        f"--ray-client-server-port={ports.client}",
    ]
    # Zero: the process itself takes a port that is free when it binds.
    command += [f"--{name}=0" for name in ("min-worker-port", "max-worker-port", "metrics-export-port")]
    command += [f"--{name}=0" for name in ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")]
    command.append(f"--num-cpus={cpus}")
    return command if gpus is None else [*command, f"--num-gpus={gpus}"]
