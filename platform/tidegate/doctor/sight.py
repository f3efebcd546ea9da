"""A look at a cluster by a driver, in a process of its own: joining a wrong address may take long or end a process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOK_S = 90.0


@dataclass(frozen=True)
class Node:
    """A living node: its resources as Ray counts them, and what a process that Ray starts there finds.

    `variables` are the environment's for Ray. `sees` tells whether a file of this machine is there; `cuda` how many
    GPUs torch can use, None on a node without GPUs; `missing` the packages it lacks; `traces` whether it can send spans
    to the collector that it is told, None where it is told none.
    """

    address: str
    resources: dict[str, float]
    variables: dict[str, str]
    sees: bool
    cuda: int | None
    missing: list[str]
    traces: bool | None = None


@dataclass(frozen=True)
class Sight:
    """A cluster as a driver sees it. `refusal` says why it could not join; `silent` nodes did not answer."""

    nodes: tuple[Node, ...] = ()
    silent: tuple[str, ...] = ()
    refusal: str = ""


def look(address: str, probe: Path, timeout_s: float = LOOK_S) -> Sight:
    """Join the cluster at `address` (host:port) and ask a process on each node. `probe` is a file to be seen there."""
    command = [sys.executable, "-m", "tidegate.doctor.look", address, str(probe)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Sight(refusal=f"joining takes over {timeout_s:g} s")
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return _read(json.loads(line))
    last = (done.stderr.strip().splitlines() or [f"the look ended with code {done.returncode}"])[-1]
    return Sight(refusal=last[:300])


def _read(found: dict[str, Any]) -> Sight:
    nodes = tuple(Node(**node) for node in found.get("nodes", []))
    return Sight(nodes, tuple(found.get("silent", [])), found.get("refusal", ""))
