"""This process as a driver of a cluster: joining one, its state, and keeping Ray's own messages out of the way."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tidegate import releases, settings
from tidegate.cluster import NAMESPACE, current, listens
from tidegate.cluster_environment import LOOPBACK_FLAG
from tidegate.errors import ClusterError
from tidegate.ray_internals import keep_loopback_addresses, reread_settings

if TYPE_CHECKING:
    from tidegate.remote.jobs import Jobs

logger = logging.getLogger(__name__)
_far: Jobs | None = None
_dashboard = ""
"""What the cluster that this process joined said."""


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

    An address http://host:port is that of a dashboard: what a driver would do is then done by jobs (see `far`). Inside
    a Ray job it joins the job's cluster. Returns at once when connected already. Raises ClusterError when there is no
    cluster, it does not answer or it refuses this process.
    """
    global _far
    if is_far(address):
        _far = _joined_far(address or os.environ["RAY_ADDRESS"])
        return
    _far = None
    if is_joined():
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
    _warn_of_untested_ray()
    quiet()


def is_far(address: str | None = None) -> bool:
    """Whether `address`, else what was connected to, else RAY_ADDRESS, is reached through the Jobs API only."""
    if address is None and _far is None and is_joined():
        return False
    named = address or (_far.url if _far else os.environ.get("RAY_ADDRESS", ""))
    return named.startswith(("http://", "https://"))


def far() -> Jobs | None:
    """The Jobs API of the cluster, where it is reached by that; None for a driver. Raises ClusterError."""
    if not is_far():
        return None
    if _far is None:
        connect()
    return _far


def jobs() -> Jobs:
    """The Jobs API of the cluster, however it is reached. Raises ClusterError when it has none."""
    return far() or _opened(_dashboard_url())


def _joined_far(url: str) -> Jobs:
    return _far if _far is not None and _far.url == url.rstrip("/") else _opened(url)


def _opened(url: str) -> Jobs:
    from tidegate.remote.jobs import Jobs

    opened = Jobs(url)
    quiet()
    return opened


def _dashboard_url() -> str:
    local, address = current(), os.environ.get("RAY_ADDRESS")
    if local is not None and address in (None, "", local.address):
        return local.dashboard_url
    connect()
    found = os.environ.get("RAY_API_SERVER_ADDRESS") or _dashboard
    if not found:
        raise ClusterError("the cluster tells no address of a dashboard", remedy="set RAY_API_SERVER_ADDRESS to it")
    return found if "://" in found else f"http://{found}"


def is_joined() -> bool:
    """Whether this process is a driver of a cluster."""
    # Not imported means not connected; importing Ray takes a second.
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _check_address(address: str) -> None:
    """Refuse what Ray would only find out after a long wait."""
    if address == "auto" or address.startswith("ray://"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ClusterError(
            f"cluster address {address!r}", expected="host:port or http://host:port", remedy="set RAY_ADDRESS to one"
        )
    if not listens(address):
        raise ClusterError(
            f"no cluster answers at {address}",
            remedy="start one with `tidegate up` or correct RAY_ADDRESS; `tidegate doctor` looks",
        )


def _join(address: str) -> None:
    import ray

    global _dashboard
    shown = settings.RAY_LOGS.flag()
    try:
        context = ray.init(
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
            remedy="`tidegate doctor` looks at RAY_AUTH_MODE, the token, and Ray and Python on both sides",
        ) from error
    _dashboard = str(context.dashboard_url or "")


@cache
def _warn_of_untested_ray() -> None:
    """Once a process. Only what the missing names stand on is off: ray_internals has the table."""
    import ray

    if sentence := releases.untested_ray(ray.__version__):
        logger.warning("%s", sentence)


def quiet() -> None:
    """Silence the libraries of Ray in this process unless TIDEGATE_RAY_LOGS asks for them.

    Call it again after importing ray.data or ray.serve: they set up their loggers when imported.
    """
    if settings.RAY_LOGS.flag():
        return
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve"):
        logger = logging.getLogger(name)
        # Ray Data writes an error out that it then raises: it would be told twice, once with all of its stack.
        level = logging.CRITICAL if name == "ray.data" else logging.ERROR
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(level)
        if name != "ray.data":
            logger.setLevel(logging.ERROR)
    if "ray.data" in sys.modules:
        with warnings.catch_warnings():
            # Ray Data's own defaults set values that it calls deprecated, once, when they are made.
            warnings.filterwarnings("ignore", "`use_.*` is deprecated", DeprecationWarning)
            context = sys.modules["ray.data"].DataContext.get_current()
        context.enable_progress_bars = False


def status() -> ClusterStatus:
    """What the connected cluster has and has free. Raises ClusterError when this process is not connected."""
    if not is_joined():
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
