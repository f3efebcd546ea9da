"""The processes of a local cluster: finding all that belong to it, and stopping just those. Through Linux's /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tidegate.cluster_environment import MARK
from tidegate.errors import ClusterError

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
