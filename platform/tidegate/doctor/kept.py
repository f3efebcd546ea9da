"""What Tidegate keeps: the home directory, MLflow's database, and what a cluster that is gone left."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tidegate import cluster, cluster_processes, store
from tidegate.cluster import LocalCluster
from tidegate.doctor.finding import Finding, fine, warning, wrong
from tidegate.errors import ClusterError, UnavailableError

GIB = 2**30
NEEDED, LITTLE = GIB // 4, 2 * GIB
FULLEST = 0.95
"""Ray keeps no objects on a disk that is fuller."""
LOCKED_S = 2.0


def storage(home: Path) -> Finding:
    """Whether the home directory can be written to, and has room."""
    name, move = "storage", "set TIDEGATE_HOME to another folder"
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=home, prefix=".doctor-"):
            usage = shutil.disk_usage(home)
    except OSError as error:
        return wrong(name, f"{home} cannot be written to: {os.strerror(error.errno or 0)}", move)
    return room(home, usage.total, usage.free)


def room(home: Path, total: int, free: int) -> Finding:
    """`total` and `free` bytes of the disk under `home`."""
    name, told = "storage", f"{home}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < NEEDED:
        return wrong(name, told, "free some, or set TIDEGATE_HOME to a folder with more")
    if free < LITTLE or free < (1 - FULLEST) * total:
        return warning(name, told, f"free some: Ray keeps no objects on a disk that is over {FULLEST:.0%} full")
    return fine(name, told)


def shared(home: Path, nodes: int, blind: Sequence[str]) -> Finding:
    """`blind` are the addresses of the nodes that do not see what this machine writes under `home`."""
    name = "shared storage"
    if not blind:
        return fine(name, f"{home} is the same on all nodes" if nodes > 1 else "one node needs none")
    told = f"{len(blind)} of {nodes} nodes do not see {home} of this machine: {', '.join(blind[:5])}"
    return wrong(
        name, told, "mount one storage at one path of every node, and set TIDEGATE_HOME to it before `ray start`"
    )


def database() -> Finding:
    """Whether MLflow's store answers, is not locked, and has the schema of the installed MLflow."""
    name = "MLflow"
    file = store.sqlite_file(store.store_uri())
    if file is not None and not file.exists():
        return fine(name, f"{file} is made by the first run")
    if file is not None and (trouble := _held(file)):
        return trouble
    try:
        store.attempt(lambda client: client.search_experiments(max_results=1))
    except UnavailableError as error:
        remedy = error.remedy or f"see that {'it is whole' if file else 'the server runs'}, or set MLFLOW_TRACKING_URI"
        if "database schema" in error.happened:
            remedy = f"save a copy of it, then `mlflow db upgrade {store.store_uri()}`"
        return wrong(name, error.happened, remedy)
    return fine(name, str(file) if file else "the server at MLFLOW_TRACKING_URI answers")


def _held(file: Path) -> Finding | None:
    """What keeps a SQLite file from being written to now."""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=LOCKED_S)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        if "locked" in str(error):
            return wrong("MLflow", f"{file} is locked by another process", "wait for it or end it: `fuser` names it")
        return wrong("MLflow", f"{file} cannot be written to: {error}", "restore it from a copy, or move it away")
    return None


def leftovers() -> Finding:
    """What `tidegate up` left behind when its cluster was lost rather than stopped."""
    name = "leftovers"
    try:
        record = cluster.recorded()
    except ClusterError as error:
        return wrong(name, error.happened, error.remedy)
    if record is None or cluster.current() is not None:
        return fine(name, "none")
    left = _left(record)
    return warning(name, f"a cluster that is gone left its record{left}", "`tidegate down` clears it away")


def _left(record: LocalCluster) -> str:
    processes = len(cluster_processes.members(record.pid, record.temp_dir))
    return f" and {processes} processes" if processes else ""
