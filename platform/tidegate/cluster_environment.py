"""What a local cluster is made of outside Ray: environment flags, ports, folder and processes.

Processes are found through Linux's /proc.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
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
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
}

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
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
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


def write_haproxy_wrapper(folder: Path, binary: str, ports: Ports) -> None:
    """The program Ray starts as HAProxy: binds the metrics and statistics pages to loopback, then becomes `binary`.

    Ray's configuration template has no setting for their address and would open them on all interfaces.
    """
    pages = f"{ports.haproxy_metrics}|{ports.haproxy_stats}"
    wrapper = folder / "haproxy"
    wrapper.write_text(
        "#!/bin/sh\n"
        "previous=\n"
        'for argument in "$@"; do\n'
        f'  [ "$previous" = -f ] && sed -i -E \'s/^( *bind )\\*?:({pages})$/\\1{HOST}:\\2/\' "$argument"\n'
        "  previous=$argument\n"
        "done\n"
        f'exec {shlex.quote(binary)} "$@"\n'
    )
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


_PROC = Path("/proc")
_LEADER_WAIT_S = 15.0
_TERM_WAIT_S = 3.0
_KILL_WAIT_S = 10.0


@dataclass(frozen=True)
class Process:
    """One process; its start (clock ticks since boot) tells it from a later one with the same number."""

    pid: int
    parent: int
    session: int
    started: int


def find(pid: int) -> Process | None:
    """The living process `pid`; None when there is none or it has ended and only waits for its parent to notice."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The command name, in parentheses, may itself hold spaces and parentheses.
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        return None
    return Process(pid, parent=int(fields[1]), session=int(fields[3]), started=int(fields[19]))


def belongs(pid: int, folder: str) -> bool:
    """Whether process `pid` was started as part of the cluster in `folder`."""
    mark = f"{MARK}={folder}".encode()
    return mark in _read(pid, "environ").split(b"\0")


def members(leader: int, folder: str) -> set[Process]:
    """All living processes of the cluster in `folder` that process `leader` started, apart from the calling one.

    Those that bear its mark, those in its leader's session and in sessions that a marked process leads (some of Ray's
    overwrite their environment with a title), and all descendants of these, wherever they moved.
    """
    table = {process.pid: process for process in _all()}
    marked = {pid for pid in table if belongs(pid, folder)} - {os.getpid()}
    # A session counts only under our own leader: one that merely holds a marked process may be a person's terminal.
    sessions = {pid for pid in marked if table[pid].session == pid}
    if any(process.session == leader and _holds_files(process.pid, folder) for process in table.values()):
        sessions.add(leader)
    found = marked | {pid for pid, process in table.items() if process.session in sessions}
    grown = True
    while grown:
        children = {pid for pid, process in table.items() if process.parent in found} - found
        found |= children
        grown = bool(children)
    return {table[pid] for pid in found - {os.getpid()}}


def _holds_files(pid: int, folder: str) -> bool:
    # Tells our session from a later one with the same number, once the leader and all marked processes are gone.
    try:
        return any(os.readlink(link).startswith(folder) for link in (_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return False


def stop(leader: int, folder: str) -> None:
    """Stop the cluster in `folder`: its leader ends it in order, what is left after a bounded wait is killed.

    Raises ClusterError when a process outlives even that.
    """
    found = members(leader, folder)
    leading = {process for process in found if process.pid == leader}
    _send(leading, signal.SIGTERM)
    _wait_until(lambda: not _alive(leading), _LEADER_WAIT_S)

    def left() -> set[Process]:
        found.update(members(leader, folder))
        return _alive(found)

    for number, seconds in ((signal.SIGTERM, _TERM_WAIT_S), (signal.SIGKILL, _KILL_WAIT_S)):
        _send(left(), number)
        _wait_until(lambda: not left(), seconds)
    reap(leader)
    if remaining := left():
        numbers = ", ".join(str(process.pid) for process in remaining)
        raise ClusterError(f"processes {numbers} could not be stopped", remedy="end them by hand")


def reap(pid: int) -> None:
    """Take note of the end of `pid` if this process started it; otherwise it would stay as a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _all() -> Iterator[Process]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (process := find(int(entry.name))):
            yield process


def _read(pid: int, name: str) -> bytes:
    # Processes of other users may not be read, and any process may end at any time: neither is ours to stop.
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


def _alive(processes: set[Process]) -> set[Process]:
    return {process for process in processes if (now := find(process.pid)) and now.started == process.started}


def _send(processes: set[Process], number: signal.Signals) -> None:
    for process in _alive(processes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
