"""The one owner of Tidegate's Serve applications: an actor that keeps what Serve runs equal to what is desired.

Serve deletes the declarative applications that a deploy leaves out, so all deploys go through here, and other people's
applications are handed back as they stand.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from tidegate import ray_internals, registry, settings, store
from tidegate.errors import TidegateError
from tidegate.serving import desired, ledger_actor, targets
from tidegate.serving.applications import (
    ROOT,
    Application,
    access_of,
    endpoint_application,
    is_ours,
    name_of,
    root_application,
    target_of,
)
from tidegate.serving.desired import LOGGER, Failure, Record
from tidegate.serving.status import EndpointStatus, answers_ready, failure_of, serves, summary, view
from tidegate.spec.endpoint import Endpoint

LOOPBACK = "127.0.0.1"
_IDLE_S = 2.0
_BUSY_S = 0.2
# So long Serve's proxies usually take to hear of a replica; nothing is said of it before.
_USUAL_S = 15.0
_STATS_TIMEOUT_S = 2.0
_ANY_SERVICE = "ray.serve.generated.serve_pb2_grpc.add_RayServeAPIServiceServicer_to_server"
_LEAVING = ("DEPLOY_FAILED", "DELETING")


@dataclass(frozen=True)
class Progress:
    """How a deploy stands. `failure` is of an earlier generation when the latest deploy has not failed."""

    status: EndpointStatus
    generation: int
    is_settled: bool
    failure: Failure | None


class Deployer:
    """Runs as one detached actor on the head node. Its methods come from many drivers; one thread reconciles."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records = desired.load_all()
        self._retries: set[str] = set()
        self._notes: dict[str, str] = {}
        self._unanswered: dict[str, float] = {}
        """Since when an endpoint's replicas are ready and its address does not answer."""
        self._details: dict[str, Any] = {}
        self._trouble = ""
        self._published: dict[str, Any] = {}
        self._runtime_env = _shared_runtime_env(ray.get_runtime_context().runtime_env)
        self._wake = threading.Event()
        threading.Thread(target=self._run, name="reconcile", daemon=True).start()

    def home(self) -> str:
        """The home directory whose endpoints this deployer keeps."""
        return str(settings.home())

    def registry(self) -> str:
        """A digest of where versions are looked up; the address itself may hold a password."""
        return store.digest()

    def trouble(self) -> str | None:
        """What the last round failed on; empty when it did not, None before the first one is through."""
        return self._trouble or ("" if self._details else None)

    def submit(self, spec: str) -> int:
        """Takes an endpoint spec as JSON. Returns the generation to follow with `progress`.

        Raises NotFoundError when its model reference means nothing.
        """
        endpoint = Endpoint.model_validate_json(spec)
        pinned = desired.pin(registry.version(endpoint.model))
        with self._lock:
            record = self._records.get(endpoint.name)
            record = record.deployed(endpoint, pinned) if record else Record(endpoint, rolling=pinned)
            self._keep(record)
            self._retries.add(endpoint.name)
        self._wake.set()
        return record.generation

    def reload(self, name: str, model: str) -> int:
        """Deploys an endpoint as it is, on the reference `model` unless that is empty; a new one where there is none.

        Returns and raises as `submit`.
        """
        with self._lock:
            record = self._records.get(name)
        endpoint = record.endpoint if record else Endpoint(name=name, model=model or name)
        return self.submit(endpoint.model_copy(update={"model": model} if model else {}).model_dump_json())

    def remove(self, name: str) -> bool:
        """Whether there was such an endpoint."""
        with self._lock:
            known = self._records.pop(name, None) is not None
            desired.delete(name)
        self._wake.set()
        return known

    def progress(self, name: str) -> Progress | None:
        with self._lock:
            record = self._records.get(name)
        if record is None:
            return None
        return Progress(self._status(record), record.generation, record.rolling is None, record.failure)

    def endpoints(self) -> list[EndpointStatus]:
        return [self._status(record) for record in self._all()]

    def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                self._reconcile()
                self._trouble = ""
            except Exception as error:  # noqa: BLE001 - whatever it is, the owner of the endpoints must go on
                LOGGER.exception("A round of the deployer failed; it is tried again.")
                self._trouble = f"{type(error).__name__}: {error}"
            self._wake.wait(_BUSY_S if any(record.rolling for record in self._all()) else _IDLE_S)

    def _reconcile(self) -> None:
        if not ray_internals.serve_is_running():
            serve.start(
                http_options={"host": settings.SERVE_HOST.text(), "port": int(settings.SERVE_PORT.text())},
                # Serve speaks gRPC when it is given a service. Replicas of ours bring their own: any will do that
                # all of Serve's processes can import.
                grpc_options={"port": int(settings.GRPC_PORT.text()), "grpc_servicer_functions": [_ANY_SERVICE]},
            )
        for record in self._all():
            self._follow(record)
        if any(record.endpoint.access.tenants for record in self._all()):
            ledger_actor.ensure()
        self._details = ray_internals.serve_details()
        self._publish()
        wanted = self._wanted()
        if _form(wanted) != _form(_deployed(self._details, ours=True)):
            LOGGER.info("Applying %s.", ", ".join(sorted(application["name"] for application in wanted)))
            _apply([*_deployed(self._details, ours=False), *wanted], self._details.get("target_capacity"))
            self._details = ray_internals.serve_details()
        for record in self._all():
            if record.rolling is not None:
                self._judge(record)

    def _follow(self, record: Record) -> None:
        """Takes up a version that the endpoint's reference has come to mean."""
        if record.target is not None and record.target.ref == record.endpoint.model:
            return
        name = record.endpoint.name
        try:
            pinned = desired.pin(registry.version(record.endpoint.model))
        except TidegateError as error:
            LOGGER.warning("Endpoint %s: %s", name, error)
            self._notes[name] = str(error)
            return
        self._notes.pop(name, None)
        self._replace(record, record.moved(pinned))

    def _wanted(self) -> list[Application]:
        applications = self._details["applications"]
        records = self._all()
        wanted = []
        for record in records:
            # Serve does not try again what it gave up on, unless it has gone in between.
            if record.endpoint.name in self._retries:
                if view(applications.get(name_of(record.endpoint.name))).status in _LEAVING:
                    continue
                self._retries.discard(record.endpoint.name)
            if record.target is not None:
                wanted.append(endpoint_application(record, self._runtime_env, is_loopback=self._is_loopback()))
        if not _root_is_taken(applications):
            wanted.append(root_application(self._runtime_env, is_loopback=self._is_loopback()))
        return wanted

    def _publish(self) -> None:
        """Tells the replicas what to serve, and the root of the endpoints."""
        records = self._all()
        documents = {
            record.endpoint.name: asdict(target_of(record, is_loopback=self._is_loopback()))
            for record in records
            if record.target is not None
        }
        documents[targets.ROOT] = {
            "endpoints": {record.endpoint.name: self._told(record) for record in records},
            "keys_required": not self._is_loopback(),
        }
        for name, document in documents.items():
            if self._published.get(name) != document:
                targets.publish(name, document)
        for name in self._published.keys() - documents.keys():
            targets.withdraw(name)
        self._published = documents

    def _judge(self, record: Record) -> None:
        """Ends a rollout that has come to its end, well or not."""
        assert record.rolling is not None
        if record.endpoint.name in self._retries:
            return  # what Serve says is still of the deploy before
        config = asdict(target_of(record, is_loopback=self._is_loopback()))
        seen = view(self._details["applications"].get(name_of(record.endpoint.name)))
        stats = ray_internals.replica_stats(list(seen.running), _STATS_TIMEOUT_S)
        message = failure_of(seen, stats, config)
        if message is not None:
            LOGGER.error("Endpoint %s: %s does not serve: %s", record.endpoint.name, record.rolling.ref, message)
            self._unanswered.pop(record.endpoint.name, None)
            self._replace(record, record.failed(message))
        elif serves(seen, stats, config, max(1, record.endpoint.replicas.min)):
            self._confirm(record)

    def _confirm(self, record: Record) -> None:
        """Ends a rollout once the endpoint also answers over HTTP, which is a moment after its replicas do."""
        assert record.rolling is not None
        name, options = record.endpoint.name, self._details["http_options"]
        host, port = _reachable(options["host"]), options["port"]
        if answers_ready(host, port, name, record.rolling.version):
            LOGGER.info("Endpoint %s serves %s.", name, record.rolling.ref)
            self._notes.pop(name, None)
            self._unanswered.pop(name, None)
            self._replace(record, record.settled())
            # The root is to tell of it at once.
            self._wake.set()
        elif time.monotonic() - self._unanswered.setdefault(name, time.monotonic()) > _USUAL_S:
            self._notes[name] = (
                f"the replicas are ready, but {host}:{port} does not answer for them: see Serve's proxy log"
            )

    def _status(self, record: Record) -> EndpointStatus:
        name = record.endpoint.name
        seen = view(self._details.get("applications", {}).get(name_of(name)))
        url = f"{base_url(self._details)}/v2/models/{name}"
        return summary(record, seen, url, self._notes.get(name, "") or self._trouble)

    def _told(self, record: Record) -> dict[str, Any]:
        """What the root says of an endpoint to whoever asks."""
        status = self._status(record)
        ready = status.status in ("ready", "updating")
        return {
            "ready": ready,
            "version": status.version,
            "message": "" if ready else status.message or status.status,
            "serves": record.serving is not None,
            "sleeps": record.endpoint.replicas.min == 0,
            "access": access_of(record.endpoint, is_loopback=self._is_loopback()),
        }

    def _is_loopback(self) -> bool:
        """Whether only this machine reaches the endpoints."""
        return is_loopback(self._details["http_options"]["host"])

    def _all(self) -> list[Record]:
        with self._lock:
            return list(self._records.values())

    def _replace(self, old: Record, new: Record) -> None:
        """Keeps `new` unless somebody deployed or removed the endpoint since `old` was read."""
        if new is old:
            return
        with self._lock:
            if self._records.get(old.endpoint.name) is old:
                self._keep(new)

    def _keep(self, record: Record) -> None:
        desired.save(record)
        self._records[record.endpoint.name] = record


def base_url(details: Mapping[str, Any]) -> str:
    """Where this cluster's Serve answers; what it will be when Serve has not started."""
    options = details.get("http_options") or {
        "host": settings.SERVE_HOST.text(),
        "port": int(settings.SERVE_PORT.text()),
    }
    return f"{settings.serve_scheme()}://{_reachable(options['host'])}:{options['port']}"


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(host: str) -> str:
    return LOOPBACK if host in ("0.0.0.0", "::", "") else host


def _deployed(details: Mapping[str, Any], *, ours: bool) -> list[Application]:
    """The declarative applications that stay, as they were given to Serve."""
    return [
        application["deployed_app_config"]
        for name, application in details["applications"].items()
        if is_ours(name) == ours and application["deployed_app_config"] and application["status"] != "DELETING"
    ]


def _root_is_taken(applications: Mapping[str, Any]) -> bool:
    return any(one["route_prefix"] == "/" and name != ROOT for name, one in applications.items())


def _form(applications: list[Application]) -> dict[str, Any]:
    """One form for what we write and what Serve gives back."""
    schemas = [ServeApplicationSchema.model_validate(application) for application in applications]
    return {schema.name: schema.model_dump(mode="json", exclude_unset=True) for schema in schemas}


def _apply(applications: list[Application], target_capacity: float | None) -> None:
    config = {"applications": applications, "target_capacity": target_capacity}
    ray_internals.serve_apply(ServeDeploySchema.model_validate(config))


def _shared_runtime_env(own: Mapping[str, Any]) -> dict[str, Any]:
    """What replicas need to import this package: the code shipped with the job that started the deployer, if any."""
    return {key: own[key] for key in ("working_dir", "py_modules") if own.get(key)}
