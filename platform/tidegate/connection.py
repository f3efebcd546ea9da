"""This process as a driver of a cluster: joining one, its state, and keeping Ray's own messages out of the way."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass

from tidegate import settings
from tidegate.cluster import NAMESPACE, current, listens
from tidegate.cluster_environment import LOOPBACK_FLAG
from tidegate.errors import ClusterError
from tidegate.ray_internals import keep_loopback_addresses, reread_settings


@dataclass(frozen=True)
class ClusterStatus:
    """The connected cluster: living nodes, resources by name (CPU in cores, memory in bytes), whether Serve runs."""

    address: str
    nodes: int
    total: dict[str, float]
    available: dict[str, float]
    serving: bool
    dashboard_url: str | None
    serve_url: str | None


def connect(address: str | None = None) -> None:
    """Make this process a driver of the cluster at `address` (host:port), else RAY_ADDRESS, else the local one.

    Inside a Ray job it joins the job's cluster. Returns at once when connected already. Raises ClusterError when there
    is no cluster, it does not answer or it refuses this process.
    """
    if _connected():
        return
    local = current()
    address = address or os.environ.get("RAY_ADDRESS") or (local.address if local else None)
    if not address:
        raise ClusterError("no cluster is running", remedy="start one with `tidegate up` or set RAY_ADDRESS")
    _check_address(address)
    if local is not None and address == local.address:
        # Before Ray is imported, which reads them then; for a process that has imported it there are the two calls.
        # What the environment says of authentication is meant for another cluster: this one would refuse it.
        os.environ["RAY_AUTH_MODE"] = local.auth
        for name, value in LOOPBACK_FLAG.items():
            os.environ.setdefault(name, value)
        reread_settings()
        keep_loopback_addresses()
    _join(address)
    quiet()


def _connected() -> bool:
    # Not imported means not connected; importing Ray takes a second.
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _check_address(address: str) -> None:
    """Refuse what Ray would only find out after a long wait."""
    if address == "auto" or address.startswith("ray://"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ClusterError(f"cluster address {address!r}", expected="host:port", remedy="set RAY_ADDRESS to one")
    if not listens(address):
        raise ClusterError(
            f"no cluster answers at {address}", remedy="start one with `tidegate up` or correct RAY_ADDRESS"
        )


def _join(address: str) -> None:
    import ray

    shown = settings.RAY_LOGS.flag()
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=shown,
            configure_logging=True,
            logging_level=logging.INFO if shown else logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ClusterError(
            f"the cluster at {address} refused this process: {first}",
            remedy="check RAY_AUTH_MODE and the token, and that both sides run the same Ray and Python",
        ) from error


def quiet() -> None:
    """Silence the libraries of Ray in this process unless TIDEGATE_RAY_LOGS asks for them.

    Call it again after importing ray.data or ray.serve: they set up their loggers when imported.
    """
    if settings.RAY_LOGS.flag():
        return
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve"):
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)
        if name != "ray.data":
            logger.setLevel(logging.ERROR)
    if "ray.data" in sys.modules:
        context = sys.modules["ray.data"].DataContext.get_current()
        context.enable_progress_bars = False


def status() -> ClusterStatus:
    """What the connected cluster has and has free. Raises ClusterError when this process is not connected."""
    if not _connected():
        raise ClusterError("not connected to a cluster", remedy="call tidegate.connect() first")
    import ray
    from ray.util import list_named_actors

    address = str(ray.get_runtime_context().gcs_address)
    local = current()
    ours = local if local is not None and local.address == address else None
    return ClusterStatus(
        address=address,
        nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        total=dict(ray.cluster_resources()),
        available=dict(ray.available_resources()),
        serving={"name": "SERVE_CONTROLLER_ACTOR", "namespace": "serve"} in list_named_actors(all_namespaces=True),
        dashboard_url=ours.dashboard_url if ours else None,
        serve_url=ours.serve_url if ours else None,
    )
