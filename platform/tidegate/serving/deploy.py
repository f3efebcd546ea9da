"""Endpoints as a driver sees them: deploy, remove, list, restore. All of it is done by the deployer actor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from tidegate import ray_internals, settings, store
from tidegate.errors import ClusterError, ConflictError, NotFoundError, TidegateError
from tidegate.serving.deployer import Deployer, Progress, base_url
from tidegate.serving.desired import NAMESPACE, OWNER
from tidegate.serving.status import EndpointStatus
from tidegate.spec.endpoint import Endpoint

# What a driver may have set and the node of the deployer not.
_CARRIED = (settings.TRACKING_URI, settings.SERVE_HOST, settings.SERVE_PORT, settings.GRPC_PORT)

_POLL_S = 0.2
# A busy registry may take 30 s to answer.
_CALL_TIMEOUT_S = 60.0

OnWait = Callable[[str], None]


def deploy(endpoint: Endpoint, *, wait_s: float = 120.0, on_wait: OnWait | None = None) -> EndpointStatus:
    """Serves `endpoint` and returns when every running replica answers with the wanted version.

    A version that does not serve is taken back and the one before stays. Raises NotFoundError for a model reference
    that means nothing, ConflictError when another deploy of the same name came in between, ClusterError with Serve's
    reason otherwise; after `wait_s` seconds the deploy goes on without this call.
    """
    deployer = _deployer()
    generation = _ask(deployer.submit, endpoint.model_dump_json())
    waiting = _Waiting(on_wait)
    deadline = time.monotonic() + wait_s
    while True:
        progress: Progress | None = _ask(deployer.progress, endpoint.name)
        if progress is None or progress.generation != generation:
            raise ConflictError(
                f"endpoint {endpoint.name!r} was {'removed' if progress is None else 'deployed again'} meanwhile"
            )
        if progress.failure is not None and progress.failure.generation == generation:
            raise _failed(progress)
        if progress.is_settled:
            return progress.status
        if time.monotonic() > deadline:
            raise _late(progress, wait_s)
        waiting.tell(progress.status)
        time.sleep(_POLL_S)


def remove(name: str) -> None:
    """Takes the endpoint away. Its model versions stay. Raises NotFoundError."""
    deployer = _deployer()
    if not _ask(deployer.remove, name):
        names = ", ".join(status.name for status in _ask(deployer.endpoints))
        raise NotFoundError(f"no endpoint {name!r}", expected=f"one of {names}" if names else "")


def endpoints() -> list[EndpointStatus]:
    """All endpoints, by name."""
    return sorted(_ask(_deployer().endpoints), key=lambda status: status.name)


def restore(wait_s: float = 60.0) -> None:
    """Makes sure that the deployer runs, and with it every endpoint kept under the home directory.

    Returns when Serve has been told of them. Raises ClusterError when that does not come about in `wait_s` seconds.
    """
    deployer = _deployer()
    deadline = time.monotonic() + wait_s
    while (trouble := _ask(deployer.trouble)) != "":
        if time.monotonic() > deadline:
            raise ClusterError("Serve did not start", expected=f"it within {wait_s:g} s", remedy=trouble or "")
        time.sleep(_POLL_S)


def serve_url() -> str:
    """Where endpoints answer, such as `http://127.0.0.1:8000`."""
    return base_url(ray_internals.serve_details() if ray_internals.serve_is_running() else {})


class _Waiting:
    """Tells once what is waited for, and again when it changes."""

    def __init__(self, on_wait: OnWait | None) -> None:
        self._on_wait = on_wait
        self._last = ""

    def tell(self, status: EndpointStatus) -> None:
        line = f"{status.name}: {status.status}, {status.replicas} replicas" + (
            f" ({status.message})" if status.message else ""
        )
        if self._on_wait is not None and line != self._last:
            self._on_wait(line)
        self._last = line


def _failed(progress: Progress) -> ClusterError:
    assert progress.failure is not None
    status = progress.status
    stays = f"version {status.version} stays" if status.version is not None else "the endpoint serves nothing"
    return ClusterError(f"{progress.failure.pinned.ref} does not serve: {progress.failure.message}", remedy=stays)


def _late(progress: Progress, wait_s: float) -> ClusterError:
    status = progress.status
    return ClusterError(
        f"endpoint {status.name!r} is {status.status} after {wait_s:g} s",
        expected=status.message or "enough free CPUs and GPUs for its replicas",
        remedy="it is still being tried: `tidegate endpoints` shows how it stands",
    )


def _deployer() -> Any:
    """The deployer of this cluster, started if there is none."""
    if not ray.is_initialized():
        raise ClusterError("not connected to a cluster", remedy="run `tidegate up`, then tidegate.connect()")
    actor = ray.remote(Deployer).options(
        name=OWNER,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=16,
        num_cpus=0,
        # Any head node, not a certain one: it comes back where the cluster's head is.
        resources={"node:__internal_head__": 0.001},
        runtime_env={"env_vars": _environment()},
    )
    deployer = actor.remote()
    home = _ask(deployer.home)
    if home != str(settings.home()):
        raise ClusterError(
            f"this cluster's endpoints are kept in {home}",
            expected=f"that the home directory is the same, not {settings.home()}",
            remedy=f"set TIDEGATE_HOME={home}",
        )
    if _ask(deployer.registry) != store.digest():
        raise ClusterError(
            "this cluster's endpoints look up versions in another registry than this process",
            remedy="set MLFLOW_TRACKING_URI as when the cluster started, or run `tidegate down` and `up` with it",
        )
    return deployer


def _environment() -> dict[str, str]:
    """Where things are kept, which the deployer must know as this driver does. Replicas are given paths."""
    names = tuple(setting.name for setting in _CARRIED)
    return {settings.HOME.name: str(settings.home())} | {
        name: os.environ[name] for name in names if os.environ.get(name)
    }


def _ask(method: Any, *args: Any) -> Any:
    """Calls an actor's method. Raises what it raised, as it was raised there."""
    try:
        return ray.get(method.remote(*args), timeout=_CALL_TIMEOUT_S)
    except RayTaskError as error:
        if isinstance(error.cause, TidegateError):
            raise error.cause from None
        raise ClusterError(f"the deployer failed: {error.cause}") from error
    except (RayActorError, GetTimeoutError) as error:
        raise ClusterError(
            "the deployer does not answer", remedy=f"see its log in Ray's session folder: {error}"
        ) from error
