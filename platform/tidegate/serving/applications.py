"""The declarative Serve applications behind endpoints: plain dictionaries in the form of Serve's schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidegate.serving.batching import MAX_WAITING
from tidegate.serving.desired import Record

Application = dict[str, Any]

ROOT = "tidegate"
DEPLOYMENT = "replica"

# Above what the batcher holds: the batcher refuses with 503, and Serve never keeps requests where nobody counts them.
_MAX_ONGOING = 2 * MAX_WAITING
# Serve averages load over this time and gets it this often from each replica; its defaults, 30 s and 10 s, would make a
# short `up_after_s` meaningless.
_LOOK_BACK_S = 2.0
_METRICS_INTERVAL_S = 1.0


def name_of(endpoint: str) -> str:
    """The Serve application of an endpoint. Endpoint names hold no dot, so none is taken for the root."""
    return f"{ROOT}.{endpoint}"


def is_ours(application: str) -> bool:
    return application == ROOT or application.startswith(f"{ROOT}.")


def endpoint_application(record: Record, runtime_env: Mapping[str, Any]) -> Application:
    """The application of a record with a target.

    The version is in `user_config` alone: a change of anything else than that and the replica bounds replaces replicas.
    """
    endpoint, target = record.endpoint, record.target
    assert target is not None
    deployment = {
        "name": DEPLOYMENT,
        "user_config": {
            **vars(target),
            "max_rows": endpoint.batch.max_rows,
            "capacity": endpoint.capacity.model_dump(mode="json"),
        },
        "ray_actor_options": {"num_cpus": endpoint.replicas.cpu, "num_gpus": endpoint.replicas.gpu},
        "max_ongoing_requests": _MAX_ONGOING,
        # Where replicas must be replaced, new ones come before old ones go.
        "max_surge_percent": 100,
        **_scaling(record),
    }
    return _application(
        name_of(endpoint.name),
        f"/v2/models/{endpoint.name}",
        "tidegate.serving.replica:build",
        {"name": endpoint.name},
        deployment,
        runtime_env,
    )


def root_application(ready: Mapping[str, bool], runtime_env: Mapping[str, Any]) -> Application:
    """The application at "/". `ready`: endpoint name -> whether it serves."""
    deployment = {
        "name": DEPLOYMENT,
        "user_config": {"ready": dict(ready)},
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": _MAX_ONGOING,
        "num_replicas": 1,
    }
    return _application(ROOT, "/", "tidegate.serving.root:build", {}, deployment, runtime_env)


def _scaling(record: Record) -> dict[str, Any]:
    bounds, scale = record.endpoint.replicas, record.endpoint.autoscale
    if bounds.min == bounds.max:
        return {"num_replicas": bounds.min}
    return {
        "autoscaling_config": {
            "min_replicas": bounds.min,
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
    args: dict[str, str],
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
