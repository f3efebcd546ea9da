"""Names of Ray's private modules that serving stands on. Each is checked against the installed Ray by a test."""

from __future__ import annotations

from typing import Any, cast

import ray
from ray.serve.schema import ServeDeploySchema


def _client() -> Any:
    """The client of the running Serve controller, or None. A controller that was shut down is noticed."""
    from ray.serve.context import _check_cached_client_alive, _get_global_client

    client, _ = _check_cached_client_alive()
    return client or _get_global_client(raise_if_no_controller_running=False)


def serve_is_running() -> bool:
    return _client() is not None


def serve_details() -> dict[str, Any]:
    """Serve's whole state as its REST API shows it, without the dashboard: options, applications, replicas."""
    return cast(dict[str, Any], _client().get_serve_details())


def serve_apply(config: ServeDeploySchema) -> None:
    """Makes `config` the list of declarative applications. Those it leaves out are deleted; imperative ones stay."""
    _client().deploy_apps(config)


def replica_stats(actor_names: list[str], timeout_s: float) -> dict[str, dict[str, Any]]:
    """What `record_routing_stats` of each replica's class returns, for those that answer in time."""
    refs = {}
    for name in actor_names:
        try:
            refs[ray.get_actor(name, namespace="serve").record_routing_stats.remote()] = name
        except ValueError:
            continue  # the replica has gone since its name was read
    done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=timeout_s) if refs else ([], [])
    answers = {}
    for ref in done:
        try:
            answers[refs[ref]] = ray.get(ref)
        except ray.exceptions.RayActorError:
            continue  # died meanwhile; Serve replaces it
    return answers
