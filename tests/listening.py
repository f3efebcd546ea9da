"""Which ports processes listen on, and whether these can be reached from elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tidegate.cluster import LocalCluster

_LISTEN = "0A"
_LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def listening(pids: set[int]) -> dict[int, bool]:
    """Port -> whether it can be reached from elsewhere, of what these processes listen on."""
    sockets: dict[str, tuple[int, bool]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == _LISTEN:
                sockets[fields[9]] = (int(port, 16), address not in _LOOPBACK)
    found: dict[int, bool] = {}
    for pid in pids:
        try:
            names = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        for name in names:
            if (match := re.fullmatch(r"socket:\[(\d+)\]", name)) and match[1] in sockets:
                port, is_open = sockets[match[1]]
                found[port] = found.get(port, False) or is_open
    return found


def fallback_port(local: LocalCluster, kind: str) -> int:
    """The port of Serve's fallback proxy for HTTP or GRPC."""
    lines = Path(f"/proc/{local.pid}/environ").read_text().split("\0")
    (value,) = (line.partition("=")[2] for line in lines if line.startswith(f"RAY_SERVE_FALLBACK_PROXY_{kind}_PORT="))
    return int(value)
