"""What the nodes of a cluster have: flags, packages, devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidegate.cluster_environment import NODE_FLAGS, NODE_PROGRAMS
from tidegate.doctor.finding import Finding, fine, warning, wrong
from tidegate.doctor.sight import Node

_SHOULD_BE = {**NODE_FLAGS, **NODE_PROGRAMS}
SERVING = tuple(name for name in _SHOULD_BE if name.startswith(("RAY_SERVE", "RAY_TRAIN")))
"""Those that change what a cluster does; authentication is looked at by itself."""


def flags(nodes: Sequence[Node]) -> Finding:
    """The flags that must be set before `ray start`, as the processes of each node have them."""
    name = "flags"
    missing = {node.address: _off(node.variables) for node in nodes}
    off = sorted({flag for flags in missing.values() for flag in flags})
    if not off:
        return fine(name, "those of `tidegate up` on every node")
    places = [address for address, flags in missing.items() if flags]
    where = "" if len(places) == len(nodes) else f" on {', '.join(places[:5])}"
    remedy = "export them before `ray start` on every node, as cluster.yaml does"
    return warning(name, f"endpoints are slower or lose requests without {' '.join(off)}{where}", remedy)


def _off(variables: Mapping[str, str]) -> list[str]:
    return [f"{flag}={_quoted(_SHOULD_BE[flag])}" for flag in SERVING if flag not in variables]


def _quoted(value: str) -> str:
    return f'"{value}"' if " " in value else value


def unseen_flags() -> Finding:
    return fine("flags", "`tidegate up` sets them; for a cluster of your own they are in cluster.yaml")


def packages(nodes: Sequence[Node]) -> Finding:
    """What a node needs besides Ray."""
    name = "nodes' packages"
    lacking = {node.address: node.missing for node in nodes if node.missing}
    if not lacking:
        return fine(name, "all there")
    what = sorted({package for packages in lacking.values() for package in packages})
    told = f"{', '.join(lacking)} lack {', '.join(what)}"
    return wrong(name, told, "install Tidegate's dependencies (pyproject.toml) on every node")


def tracing(nodes: Sequence[Node]) -> Finding:
    """Whether replicas send spans, wherever they run."""
    name = "tracing"
    told = [node for node in nodes if node.traces is not None]
    unable = [node.address for node in told if not node.traces]
    if unable:
        return warning(name, f"no spans from {', '.join(unable[:5])}", "pip install 'tidegate[otel]' there")
    if told and len(told) < len(nodes):
        remedy = "export OTEL_EXPORTER_OTLP_ENDPOINT before `ray start` on every node"
        return warning(name, f"spans from {len(told)} of {len(nodes)} nodes", remedy)
    return fine(name, "replicas send spans" if told else "off; OTEL_EXPORTER_OTLP_ENDPOINT turns it on")


def devices(nodes: Sequence[Node]) -> Finding:
    """CPUs and GPUs as Ray counts them; where it counts GPUs, torch must be able to use them."""
    name = "cluster devices"
    cpus, gpus = (sum(node.resources.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    for node in nodes:
        counted = node.resources.get("GPU", 0)
        if counted and node.cuda is not None and node.cuda < counted:
            return warning(
                name,
                f"Ray counts {counted:g} GPUs on {node.address}, torch can use {node.cuda}",
                "install a CUDA build of torch there, or start Ray with the right --num-gpus",
            )
    return fine(name, f"{cpus:g} CPUs, {gpus:g} GPUs as Ray counts them")


def silent(addresses: Sequence[str]) -> Finding:
    told = f"no answer from {', '.join(addresses[:5])}"
    return warning("nodes", told, "see `ray list nodes`; a node that is busy to its limits may answer later")
