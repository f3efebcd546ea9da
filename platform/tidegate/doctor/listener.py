"""Which process listens on a port of this machine. Through Linux's /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTENS = "0A"


@dataclass(frozen=True)
class Listener:
    """`pid` is None and `name` empty where the process is another user's, which may not be looked at."""

    pid: int | None
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})" if self.pid else "another user's program"


def on(port: int) -> Listener | None:
    """Who listens on `port`, on any address; None when nobody does."""
    wanted = set(_sockets(port))
    if not wanted:
        return None
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and wanted & set(_open(folder)):
            return Listener(int(folder.name), _name(folder))
    return Listener(None, "")


def _sockets(port: int) -> Iterator[str]:
    """What the links in a process's `fd` folder say for a socket that listens on `port`."""
    for table in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == _LISTENS and int(columns[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{columns[9]}]"


def _open(process: Path) -> Iterator[str]:
    try:
        for link in (process / "fd").iterdir():
            yield os.readlink(link)
    except OSError:
        return  # another user's, or it has ended


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "a program"
