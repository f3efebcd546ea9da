"""Whether all nodes of a cluster see what a run reads and writes: asked before it begins, not in the middle of it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tidegate import settings
from tidegate.errors import ClusterError, DataError

ANSWER_S = 60.0


def check(source: str) -> None:
    """Raise ClusterError for nodes that do not see the home directory, DataError for those that do not see a source.

    `source` is a path or a URI. Nodes on this machine see what this process sees, and are not asked; a node that does
    not answer in time is left to Ray.
    """
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeManagerHostname"] != socket.gethostname()]
    if not others:
        return
    with tempfile.NamedTemporaryFile(dir=settings.home(), prefix=".seen-") as probe:
        if blind := _blind(others, probe.name):
            raise ClusterError(
                f"{_named(blind, others)} not see {settings.home()} of this machine, where data, checkpoints and "
                "models are kept",
                remedy="mount one storage at one path of every node and set TIDEGATE_HOME to it before `ray start`",
            )
    if "://" not in source and os.path.exists(source) and (blind := _blind(others, source)):
        raise DataError(
            f"{_named(blind, others)} not see the source {source}",
            remedy="put it on storage that all nodes share, or in an object store (s3://...)",
        )


def _named(blind: Sequence[str], others: Sequence[object]) -> str:
    verb = "does" if len(blind) == 1 else "do"
    return f"{len(blind)} of {len(others) + 1} nodes ({', '.join(blind[:5])}) {verb}"


def _blind(nodes: Sequence[dict[str, str]], path: str) -> list[str]:
    """The addresses of those that do not see `path`."""
    task = ray.remote(num_cpus=0, max_retries=0)(_sees)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(path): node
        for node in nodes
    }
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    return sorted(asked[answer]["NodeManagerAddress"] for answer in done if not _answer(answer))


def _answer(answer: ray.ObjectRef[bool]) -> bool:
    try:
        return bool(ray.get(answer))
    except ray.exceptions.RayError:
        return True  # the node has gone meanwhile


def _sees(path: str) -> bool:
    """Executed on a node."""
    return os.path.exists(path)
