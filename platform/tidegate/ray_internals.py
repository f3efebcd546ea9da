"""Every name of Ray's private modules that Tidegate stands on, in one table, each with what it is needed for.

A test holds each against the installed Ray. Where a release lacks one, MissingError says which feature is off; the rest
works.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

from tidegate.errors import MissingError

logger = logging.getLogger(__name__)


class Private(NamedTuple):
    """`attribute` of `module`, and the feature that is off without it."""

    module: str
    attribute: str
    feature: str


RESIZE = "changing the number of workers of a run"
SOONER = "starting a run's workers without processes that it does not need"
DIRECT = "answering requests without Serve's wrapper around each (its slower way is taken)"
SERVE_ANSWERS_S = 20.0
_POLICIES = "ray.train.v2._internal.execution.scaling_policy"
NAMES = {
    "loopback": Private("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", "keeping a local cluster on loopback"),
    "settings": Private("ray._raylet", "Config", "joining a cluster with another RAY_AUTH_MODE after Ray was imported"),
    "serve_alive": Private("ray.serve.context", "_check_cached_client_alive", "endpoints"),
    "serve_client": Private("ray.serve.context", "_get_global_client", "endpoints"),
    "serve_logs": Private("ray.serve._private.logging_utils", "get_serve_logs_dir", "the access log of endpoints"),
    "replica_http": Private("ray.serve._private.replica", "start_asgi_http_server", DIRECT),
    "replica_grpc": Private("ray.serve._private.replica", "start_grpc_server", "answering over gRPC"),
    "replica_internal": Private(
        "ray.serve._private.replica", "add_port_to_grpc_server", "keeping the port between replicas on loopback"
    ),
    "replica_health": Private("ray.serve._private.replica", "Replica._dataplane_health_check", DIRECT),
    "request_metadata": Private("ray.serve._private.common", "RequestMetadata", DIRECT),
    "request_protocol": Private("ray.serve._private.common", "RequestProtocol", DIRECT),
    "elastic_policy": Private(f"{_POLICIES}.elastic", "ElasticScalingPolicy", RESIZE),
    "resize_decision": Private(_POLICIES, "ResizeDecision", RESIZE),
    "noop_decision": Private(_POLICIES, "NoopDecision", RESIZE),
    "train_controller": Private(
        "ray.train.v2.api.data_parallel_trainer", "DataParallelTrainer._initialize_and_run_controller", RESIZE
    ),
    "datasets_callback": Private("ray.train.v2._internal.callbacks.datasets", "DatasetsCallback", SOONER),
    "barrier": Private("ray.train.v2._internal.execution.worker_group.worker_group", "SynchronizationActor", SOONER),
    "end_barrier": Private("ray.train.v2._internal.execution.worker_group.state", "_shutdown_sync_actor", SOONER),
    "setup_hook": Private("ray._private.ray_constants", "WORKER_PROCESS_SETUP_HOOK_ENV_VAR", SOONER),
    "free_by_node": Private(
        "ray._private.state", "available_resources_per_node", "counting what is free node by node (the sum is used)"
    ),
    "coordinator": Private(
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator",
        "get_or_create_autoscaling_coordinator",
        "asking the cluster's autoscaler for nodes",
    ),
    "demand": Private(
        "ray.autoscaler.v2.sdk", "get_cluster_resource_state", "telling replicas that start from those that wait"
    ),
    "gcs_client": Private("ray._private.worker", "global_worker", "telling replicas that start from those that wait"),
    "driver": Private("ray._private.worker", "global_worker", "telling where Ray keeps the logs of a run"),
    "cluster_state": Private("ray._private.state", "state", "leaving nodes that are being drained"),
}


def take(name: str) -> Any:
    """A private name of the table. Raises MissingError where this Ray has none."""
    private = NAMES[name]
    try:
        found: Any = importlib.import_module(private.module)
        for part in private.attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        import ray

        raise MissingError(
            f"Ray {ray.__version__} has no {private.module}.{private.attribute}: {private.feature} is off",
            remedy="use a release of Ray that Tidegate names as tested",
        ) from None
    return found


@cache
def _warn_once(sentence: str) -> None:
    """Some names are asked for every second."""
    logger.warning("%s", sentence)


def keep_loopback_addresses() -> None:
    """Stop Ray in this process from replacing 127.0.0.1 by the machine's outward address.

    The environment variable that says so is read when Ray is imported, which may have happened before.
    """
    try:
        take("loopback")
    except MissingError as error:
        _warn_once(str(error))
        return
    importlib.import_module(NAMES["loopback"].module).ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]


def reread_settings() -> None:
    """Let Ray in this process see RAY_AUTH_MODE as it is now: it read the environment when it was imported."""
    try:
        take("settings").initialize("")
    except MissingError as error:
        _warn_once(str(error))


def _client() -> Any:
    """The client of the running Serve controller, or None. A controller that was shut down is noticed."""
    client, _ = take("serve_alive")()
    return client or take("serve_client")(raise_if_no_controller_running=False)


def serve_is_running() -> bool:
    return _client() is not None


def serve_details() -> dict[str, Any]:
    """Serve's whole state as its REST API shows it, without the dashboard: options, applications, replicas.

    Raises GetTimeoutError when the controller does not answer.
    """
    import ray

    controller = _client()._controller
    return cast(dict[str, Any], ray.get(controller.get_serve_instance_details.remote(), timeout=SERVE_ANSWERS_S))


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


class ServeReplica:
    """Serve's side of the replica that this process is."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica
        protocol = take("request_protocol").HTTP
        self._request = take("request_metadata")("", "", is_direct_ingress=True, _request_protocol=protocol)

    async def health(self) -> tuple[bool, str]:
        """Whether requests should come here, and a word for it."""
        healthy, message = await self._replica._dataplane_health_check()
        return bool(healthy), str(message)

    def ongoing(self, change: int) -> None:
        """Tells Serve of a request that came (+1) or went (-1): it scales by their number and drains until it is 0."""
        metrics = self._replica._metrics_manager
        (metrics.inc_num_ongoing_requests if change > 0 else metrics.dec_num_ongoing_requests)(self._request)

    @property
    def host(self) -> str:
        """The address that Serve has its replicas listen on."""
        return str(self._replica._http_options.host)


Listen = Callable[[ServeReplica, str, int], Awaitable[tuple["asyncio.Task[None]", Any]]]


def replace_http_server(listen: Listen) -> None:
    """In the process of a replica, before it is ready: `listen` opens the port that HAProxy sends its requests to.

    It gets host and port, and returns the task that serves and an object whose `should_exit` ends it; raises OSError
    for a port that is taken. Raises MissingError.
    """
    theirs = take("replica_http")
    take("replica_health")

    async def start(app: Any, options: Any, *, event_loop: Any, enable_so_reuseport: bool = False) -> Any:
        if event_loop is not loop:
            # The replica's code runs in a thread of its own, and so on another loop than this port would be served on.
            return await theirs(app, options, event_loop=event_loop, enable_so_reuseport=enable_so_reuseport)
        try:
            return await listen(ServeReplica(app.__self__), options.host, options.port)
        except OSError as error:
            raise RuntimeError(f"cannot listen on {options.host}:{options.port}") from error

    loop = asyncio.get_running_loop()
    setattr(importlib.import_module(NAMES["replica_http"].module), NAMES["replica_http"].attribute, start)


def keep_internal_port_on(host: str) -> None:
    """In the process of a replica, before it is ready: where Serve's other processes reach it.

    Serve listens for them on all addresses, and unpickles what comes there without asking who sent it.
    """
    theirs = take("replica_internal")

    def add(server: Any, address: str) -> Any:
        return theirs(server, f"{host}:{address.rpartition(':')[2]}")

    setattr(importlib.import_module(NAMES["replica_internal"].module), NAMES["replica_internal"].attribute, add)


def replace_grpc_server(listen: Listen) -> None:
    """The same for the port of gRPC, where Serve has one. What `listen` returns has a coroutine `stop(grace)`."""
    theirs = take("replica_grpc")

    async def start(factory: Any, options: Any, *, event_loop: Any, enable_so_reuseport: bool = False) -> Any:
        if event_loop is not loop:
            return await theirs(factory, options, event_loop=event_loop, enable_so_reuseport=enable_so_reuseport)
        replica = ServeReplica(factory.__self__)
        try:
            return await listen(replica, replica.host, options.port)
        except OSError as error:
            raise RuntimeError(f"cannot listen on {replica.host}:{options.port}") from error

    loop = asyncio.get_running_loop()
    setattr(importlib.import_module(NAMES["replica_grpc"].module), NAMES["replica_grpc"].attribute, start)


@dataclass(frozen=True)
class Scaling:
    """What a policy of our own for Ray Train's controller is made of."""

    policy: type[Any]
    resize: type[Any]
    noop: type[Any]


def scaling() -> Scaling:
    """Raises MissingError where a run's size cannot be set from outside."""
    take("train_controller")
    return Scaling(take("elastic_policy"), take("resize_decision"), take("noop_decision"))


def with_policy(trainer: type[Any], policy: Any, *, datasets: bool) -> type[Any]:
    """A subclass of a Ray trainer whose controller decides by `policy`.

    Without `datasets` no process is started that would hand them to the workers.
    """
    _barrier()  # the controller's process would say only in a log what is missing
    method = NAMES["train_controller"].attribute.split(".")[1]

    def start(self: Any, **options: Any) -> Any:
        callbacks = options["callbacks"] if datasets else _without_datasets(options["callbacks"])
        return getattr(super(sized, self), method)(**(options | {"scaling_policy": policy, "callbacks": callbacks}))

    sized = type(f"Sized{trainer.__name__}", (trainer,), {method: start})
    return sized


def _without_datasets(callbacks: list[Any]) -> list[Any]:
    try:
        datasets = take("datasets_callback")
    except MissingError as error:
        _warn_once(str(error))
        return callbacks
    return [callback for callback in callbacks if not isinstance(callback, datasets)]


class SharedBarrier:
    """Takes the place of the class of Ray Train's synchronization actor: one serves group after group.

    A new one is a process that competes with the new workers for the processors of its node while they start.
    """

    def __init__(self, actor_class: Any) -> None:
        self.actor_class = actor_class
        self._options: dict[str, Any] = {}
        self._kept: Any = None

    def options(self, **options: Any) -> SharedBarrier:
        self._options = options
        return self

    def remote(self, **arguments: Any) -> Any:
        """The actor of the group before, if it is still there."""
        import ray

        kept, self._kept = self._kept, None
        try:
            if kept is not None:
                ray.get(kept.get_counter.remote(), timeout=5)
                return kept
        except ray.exceptions.RayError as error:
            logger.warning("starting another synchronization actor: %s", error)
        return self.actor_class.options(**self._options).remote(**arguments)

    def release(self, actor: Any) -> None:
        """A group has ended. Whoever of it still waits at the barrier is let go."""
        actor.reset.remote()
        self._kept = actor


def share_barrier() -> None:
    """In the process of Ray Train's controller: keep its synchronization actor over resizes."""
    actor_class = _barrier()
    if actor_class is None or isinstance(actor_class, SharedBarrier):
        return
    shared = SharedBarrier(actor_class)
    for name, value in (("barrier", shared), ("end_barrier", shared.release)):
        setattr(importlib.import_module(NAMES[name].module), NAMES[name].attribute, value)


def _barrier() -> Any:
    """The class of the synchronization actor; None where it cannot be replaced."""
    try:
        take("end_barrier")
        return take("barrier")
    except MissingError as error:
        _warn_once(str(error))
        return None


def setup_hook(function: str) -> dict[str, str]:
    """Environment variables of worker processes that call `function` first; none where the job has such a hook.

    Ray's runtime environments know hooks only for a whole job.
    """
    import ray

    try:
        name = str(take("setup_hook"))
    except MissingError as error:
        _warn_once(str(error))
        return {}
    taken = ray.get_runtime_context().runtime_env.get("env_vars") or {}
    return {} if name in taken else {name: function}


def worker_nodes(group: Any) -> list[str]:
    """The node id of each worker of a group that Ray Train runs."""
    return [str(worker.metadata.node_id) for worker in group.workers]


def give_back(group: Any) -> None:
    """Free what a group that Ray Train ran holds. Whoever of it still lives ends."""
    group.placement_group_handle.shutdown()


def logs_folder() -> str:
    """Where Ray keeps the logs of this cluster's processes, on each node; "" where this Ray does not tell."""
    try:
        return str(take("driver").node.get_logs_dir_path())
    except (MissingError, AttributeError) as error:
        _warn_once(str(error))
        return ""


def serve_logs_folder() -> str:
    """Where the replica that this process is has its log. Raises MissingError."""
    return str(take("serve_logs")())


def free_by_node() -> Mapping[str, Mapping[str, float]]:
    """What is free on each living node. The sum as if it were one node, where this Ray does not tell."""
    import ray

    try:
        return cast(Mapping[str, Mapping[str, float]], take("free_by_node")())
    except MissingError as error:
        _warn_once(str(error))
        return {"": ray.available_resources()}


Shape = frozenset[tuple[str, float]]
"""What an actor or a task asks for, without zeros."""


def shape(resources: Mapping[str, float]) -> Shape:
    return frozenset((kind, float(amount)) for kind, amount in resources.items() if amount)


def waiting_demand() -> Counter[Shape] | None:
    """How many tasks and actors wait for a place, by what they ask for; None, where this Ray does not tell.

    One that has its place and whose process starts is not counted, though nothing else tells yet that it has it.
    """
    try:
        state = take("demand")(take("gcs_client").gcs_client)
    except (MissingError, AttributeError) as error:
        _warn_once(str(error))
        return None
    found: Counter[Shape] = Counter()
    for asked in state.pending_resource_requests:
        found[shape(asked.request.resources_bundle)] += asked.count
    return found


def can_grow() -> bool:
    """Whether an autoscaler may add nodes: those it manages bear the name of their type, the head too."""
    try:
        state = take("demand")(take("gcs_client").gcs_client)
        return any(node.ray_node_type_name for node in state.node_states)
    except (MissingError, AttributeError) as error:
        _warn_once(str(error))
        return False


def ask_autoscaler(requester: str, bundles: list[dict[str, float]], expire_after_s: float) -> None:
    """What the autoscaler should find a place for, with all that is held now; instead of what was asked before."""
    try:
        coordinator = take("coordinator")()
        coordinator.request_resources.remote(requester_id=requester, resources=bundles, expire_after_s=expire_after_s)
    except MissingError as error:
        _warn_once(str(error))


def draining_nodes() -> set[str]:
    """Ids of the nodes that are being drained; none, where this Ray does not tell."""
    try:
        return set(take("cluster_state").get_draining_nodes())
    except (MissingError, AttributeError) as error:
        _warn_once(str(error))
        return set()
