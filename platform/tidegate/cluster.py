"""The cluster a command or a program works on: a local one that `up` starts and `down` stops, or any other one to join.

One local cluster for each home directory. Its record, cluster.json there, holds its addresses.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from subprocess import DEVNULL, PIPE, run

from filelock import FileLock, Timeout

from tidegate import cluster_processes, dashboard, haproxy, settings
from tidegate.cluster_environment import (
    HOST,
    LOOPBACK_FLAG,
    Ports,
    make_folder,
    pick_ports,
    port_is_free,
    process_environment,
    ray_folder,
    start_command,
    write_haproxy_wrapper,
)
from tidegate.errors import ClusterError

NAMESPACE = "tidegate"
_START_S = 60.0
_PROBE_S = 2.0
_LOG_LINES = 15


@dataclass(frozen=True)
class LocalCluster:
    """The record of the local cluster: `address` is host:port for drivers, `pid` its leading process, `started` UTC."""

    address: str
    dashboard_url: str
    serve_url: str
    auth: str
    pid: int
    started: str
    temp_dir: str
    grpc_address: str = ""
    """Where endpoints answer over gRPC, as host:port."""


def up(
    *, cpus: int | None = None, gpus: int | None = None, serve_port: int = 8000, auth: str = "token"
) -> LocalCluster:
    """Start the local cluster, on loopback only, or return the one that runs already, whatever its options.

    `cpus` are logical (default: those of the machine, at least 8), `gpus` are counted by Ray when None; `auth` is
    "token" or "disabled". Raises ClusterError when a port is taken or Ray does not answer within 60 s.
    """
    if auth not in ("token", "disabled"):
        raise ClusterError(f"authentication {auth!r}", expected="token or disabled")
    with _lock():
        record = _read_record()
        if record is not None and _leads(record):
            return _wait_until_ready(record)
        if record is not None:
            _remove(record)
        if not port_is_free(serve_port):
            raise ClusterError(
                f"port {serve_port} is in use",
                remedy="stop the program that listens there or choose another Serve port",
            )
        if auth == "token":
            _ensure_token()
        return _start(cpus or max(8, os.cpu_count() or 1), gpus, serve_port, auth)


def down() -> bool:
    """Stop everything that `up` started and remove its files. False when there was nothing to stop."""
    with _lock():
        record = _read_record()
        if record is None:
            return False
        _disconnect(record)
        was_up = _leads(record) or bool(cluster_processes.members(record.pid, record.temp_dir))
        _remove(record)
        return was_up


def _disconnect(record: LocalCluster) -> None:
    """Leave the cluster first if this process is its driver: Ray would go on asking for what is being stopped."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and ray.get_runtime_context().gcs_address == record.address:
        ray.shutdown()


def current() -> LocalCluster | None:
    """The local cluster, if its leading process lives. It may still be starting."""
    record = _read_record()
    return record if record is not None and _leads(record) else None


def recorded() -> LocalCluster | None:
    """The record of the local cluster, whether that lives or not. Raises ClusterError when it is damaged."""
    return _read_record()


def environment(cluster: LocalCluster) -> dict[str, str]:
    """What a shell exports so that Ray's own commands (`ray job submit`, `ray status`) and drivers reach `cluster`."""
    return {
        "RAY_ADDRESS": cluster.address,
        "RAY_API_SERVER_ADDRESS": cluster.dashboard_url,
        "RAY_AUTH_MODE": cluster.auth,
        **LOOPBACK_FLAG,
    }


def _start(cpus: int, gpus: int | None, serve_port: int, auth: str) -> LocalCluster:
    for attempt in (1, 2):
        record = _spawn(cpus, gpus, serve_port, auth)
        try:
            return _wait_until_ready(record)
        except BaseException as error:
            ended_early = not _leads(record)
            _remove(record)
            # Another program may have taken a port between the choice and the start.
            if attempt == 2 or not (ended_early and isinstance(error, ClusterError)):
                raise
    raise AssertionError("unreachable")


def _spawn(cpus: int, gpus: int | None, serve_port: int, auth: str) -> LocalCluster:
    binary = haproxy.binary()
    folder, ports = make_folder(), pick_ports((serve_port,))
    write_haproxy_wrapper(folder, binary)
    command = start_command(folder, ports, cpus, gpus)
    variables = process_environment(folder, ports, auth) | {settings.SERVE_PORT.name: str(serve_port)}
    pid = _launch(command, variables, _log_path())
    record = _record(folder, ports, serve_port, auth, pid)
    _write_record(record)
    return record


def _launch(command: list[str], variables: dict[str, str], log: Path) -> int:
    # In a session of its own, so that Ctrl-C and the end of the terminal do not reach the cluster.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(command[0], command, variables, file_actions=actions, setsid=True)


def _record(folder: Path, ports: Ports, serve_port: int, auth: str, pid: int) -> LocalCluster:
    return LocalCluster(
        address=f"{HOST}:{ports.gcs}",
        dashboard_url=f"http://{HOST}:{ports.dashboard}",
        serve_url=f"{settings.serve_scheme()}://{HOST}:{serve_port}",
        auth=auth,
        pid=pid,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        temp_dir=str(folder),
        grpc_address=f"{HOST}:{ports.grpc}",
    )


def _wait_until_ready(record: LocalCluster) -> LocalCluster:
    deadline = time.monotonic() + _START_S
    while not _answers(record):
        cluster_processes.reap(record.pid)
        if not _leads(record):
            raise _start_error("Ray ended while it was starting")
        if time.monotonic() > deadline:
            raise _start_error(
                f"Ray does not answer at {record.address} and {record.dashboard_url} after {_START_S:.0f} s"
            )
        time.sleep(0.2)
    return record


def _start_error(happened: str) -> ClusterError:
    lines = _log_path().read_text(errors="replace").splitlines()[-_LOG_LINES:]
    remedy = f"the whole log: {_log_path()}; `tidegate doctor` looks at what may be in the way"
    ending = "its log ends with:" if lines else "its log is empty"
    return ClusterError("\n  ".join((f"{happened}; {ending}", *lines)), remedy=remedy)


def _answers(record: LocalCluster) -> bool:
    raylets = ray_folder(Path(record.temp_dir)).glob("session_latest/sockets/raylet*")
    if not any(raylets) or not listens(record.address):
        return False
    # The dashboard answers a request without a token with 401 exactly when it asks for tokens.
    answer = dashboard.ask(record.dashboard_url)
    return answer is not None and answer.status == (401 if record.auth == "token" else 200)


def listens(address: str) -> bool:
    """Whether something accepts connections at `address` (host:port)."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()
    except OSError:
        return False
    return True


def _ensure_token() -> None:
    """Make sure that Ray's token exists where Ray looks for it; Ray's own command knows where."""
    command = [str(Path(sys.executable).parent / "ray"), "get-auth-token", "--generate"]
    # The command prints the token, so its output goes nowhere; a new file would be readable by all users.
    done = run(
        command,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        text=True,
        errors="replace",
        timeout=_START_S,
        check=False,
        umask=0o077,
    )
    if done.returncode:
        raise ClusterError(
            f"Ray could not make an authentication token: {done.stderr.strip().splitlines()[-1:]}",
            remedy="make ~/.ray writable, or point RAY_AUTH_TOKEN_PATH at a token",
        )


def _leads(record: LocalCluster) -> bool:
    # The mark holds a random name, so a later process with the same number is never taken for ours.
    return cluster_processes.find(record.pid) is not None and cluster_processes.belongs(record.pid, record.temp_dir)


def _remove(record: LocalCluster) -> None:
    cluster_processes.stop(record.pid, record.temp_dir)
    shutil.rmtree(record.temp_dir, ignore_errors=True)
    _record_path().unlink(missing_ok=True)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    try:
        with FileLock(settings.home() / "cluster.lock", timeout=3 * _START_S):
            yield
    except Timeout as error:
        raise ClusterError("another command has been starting or stopping the cluster for 3 min") from error


def _record_path() -> Path:
    return settings.home() / "cluster.json"


def _log_path() -> Path:
    folder = settings.home() / "logs"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / "cluster.log"


def _read_record() -> LocalCluster | None:
    try:
        return LocalCluster(**json.loads(_record_path().read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ClusterError(f"{_record_path()} is damaged: {error}", remedy="remove it") from error


def _write_record(record: LocalCluster) -> None:
    new = _record_path().with_suffix(".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(record), file, indent=1)
    new.replace(_record_path())
