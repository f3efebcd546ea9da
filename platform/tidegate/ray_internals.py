"""Every name of Ray's private modules that Tidegate stands on. Each is checked against the installed Ray by a test."""

from __future__ import annotations

from typing import Any, cast


def keep_loopback_addresses() -> None:
    """Stop Ray in this process from replacing 127.0.0.1 by the machine's outward address.

    The environment variable that says so is read when Ray is imported, which may have happened before.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def reread_settings() -> None:
    """Let Ray in this process see RAY_AUTH_MODE as it is now: it read the environment when it was imported."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


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


def serve_apply(config: Any) -> None:
    """Makes `config` the list of declarative applications. Those it leaves out are deleted; imperative ones stay."""
    _client().deploy_apps(config)


def replica_stats(actor_names: list[str], timeout_s: float) -> dict[str, dict[str, Any]]:
    """What `record_routing_stats` of each replica's class returns, for those that answer in time."""
    import ray

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
