"""The declarative Serve applications behind endpoints: plain dictionaries in the form of Serve's schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tidegate import settings
from tidegate.serving.desired import Record
from tidegate.serving.limits import MIB, Limits
from tidegate.serving.targets import Target
from tidegate.spec.endpoint import Endpoint

Application = dict[str, Any]

ROOT = "tidegate"
DEPLOYMENT = "replica"

# Serve never keeps requests where nobody counts them: it gives a replica twice what its queue holds, which refuses.
_ONGOING_PER_QUEUED = 2
# Serve averages load over this time and gets it this often from each replica; its defaults, 30 s and 10 s, would make a
# short `up_after_s` meaningless.
_LOOK_BACK_S = 2.0
_METRICS_INTERVAL_S = 1.0


def name_of(endpoint: str) -> str:
    """The Serve application of an endpoint. Endpoint names hold no dot, so none is taken for the root."""
    return f"{ROOT}.{endpoint}"


def is_ours(application: str) -> bool:
    return application == ROOT or application.startswith(f"{ROOT}.")


def target_of(record: Record, *, is_loopback: bool) -> Target:
    """What the replicas of a record with a target are to serve. `is_loopback`: only this machine reaches them."""
    endpoint, target = record.endpoint, record.target
    assert target is not None
    return Target(
        record.generation,
        **vars(target),
        batch=endpoint.batch.model_dump(mode="json"),
        limits=asdict(_limits(endpoint)),
        access=access_of(endpoint, is_loopback=is_loopback),
        log=endpoint.log.model_dump(mode="json"),
    )


def endpoint_application(record: Record, runtime_env: Mapping[str, Any], *, is_loopback: bool) -> Application:
    """The application of a record. What its replicas serve is no part of it: any change but that of replica bounds
    takes replicas out of the load balancer, or replaces them."""
    endpoint = record.endpoint
    deployment = {
        "name": DEPLOYMENT,
        # For the arbiter, who reads it in Serve's account of the deployment; a replica does nothing with it.
        "user_config": {"capacity": endpoint.capacity.model_dump(mode="json")},
        "ray_actor_options": {"num_cpus": endpoint.replicas.cpu, "num_gpus": endpoint.replicas.gpu},
        "max_ongoing_requests": _ONGOING_PER_QUEUED * endpoint.limits.queue,
        # Where replicas must be replaced, new ones come before old ones go.
        "max_surge_percent": 100,
        **_scaling(record),
    }
    return _application(
        name_of(endpoint.name),
        f"/v2/models/{endpoint.name}",
        "tidegate.serving.replica:build",
        {"name": endpoint.name, **_args(is_loopback)},
        deployment,
        runtime_env,
    )


def _limits(endpoint: Endpoint) -> Limits:
    given = endpoint.limits
    return Limits(int(given.body_mb * MIB), given.rows, given.queue, given.timeout_s)


def access_of(endpoint: Endpoint, *, is_loopback: bool) -> dict[str, Any]:
    """The arguments of gate.Access.

    Without tenants, who is on this machine needs no key: whoever reaches the socket could as well read the files.
    """
    access = endpoint.access
    tenants = {
        name: {"rate": tenant.requests_per_s, "burst": tenant.allowance or 1.0, "concurrent": tenant.concurrent}
        for name, tenant in access.tenants.items()
    }
    is_required = not access.public and (bool(tenants) or not is_loopback)
    return {"is_public": access.public, "is_required": is_required, "tenants": tenants}


def root_application(runtime_env: Mapping[str, Any], *, is_loopback: bool) -> Application:
    """The application at "/"."""
    deployment = {
        "name": DEPLOYMENT,
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": _ONGOING_PER_QUEUED * Limits.queue,
        "num_replicas": 1,
    }
    return _application(ROOT, "/", "tidegate.serving.root:build", _args(is_loopback), deployment, runtime_env)


def _args(is_loopback: bool) -> dict[str, Any]:
    return {"home": str(settings.home()), "is_loopback": is_loopback}


def _scaling(record: Record) -> dict[str, Any]:
    bounds, scale = record.endpoint.replicas, record.endpoint.autoscale
    # A version is tried on a replica before the endpoint may sleep.
    at_least = bounds.min if record.rolling is None else max(1, bounds.min)
    if bounds.min == bounds.max:
        return {"num_replicas": bounds.min}
    return {
        "autoscaling_config": {
            "min_replicas": at_least,
            "max_replicas": bounds.max,
            "target_ongoing_requests": scale.target_ongoing_requests,
            "upscale_delay_s": scale.up_after_s,
            "downscale_delay_s": scale.down_after_s,
            "look_back_period_s": _LOOK_BACK_S,
            "metrics_interval_s": _METRICS_INTERVAL_S,
        }
    }


def _application(
    name: str,
    prefix: str,
    import_path: str,
    args: dict[str, Any],
    deployment: dict[str, Any],
    runtime_env: Mapping[str, Any],
) -> Application:
    application: Application = {
        "name": name,
        "route_prefix": prefix,
        "import_path": import_path,
        "args": args,
        # A line in a log for each request costs a fifth of a small model's throughput.
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "deployments": [deployment],
    }
    return {**application, "runtime_env": dict(runtime_env)} if runtime_env else application
