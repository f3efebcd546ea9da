"""One copy of an endpoint: the ingress itself. It holds one loaded model version and answers the protocol's calls.

What to serve is in a file that it watches (targets.py). A new version is loaded beside the old one, checked, warmed up
and then swapped in one assignment; requests already taken finish on the version they met.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.exceptions import RayError

from tidegate import ray_internals, settings
from tidegate.errors import ArtifactError, MissingError, RequestError, TidegateError
from tidegate.protocol import InferRequest, checked_outputs
from tidegate.serving import tracing
from tidegate.serving.access_log import AccessLog
from tidegate.serving.applications import DEPLOYMENT, name_of
from tidegate.serving.asgi import App
from tidegate.serving.batching import Batcher
from tidegate.serving.exchange import LOGGER, HttpError, Request, Response
from tidegate.serving.gate import Access, Gate, KeyWatch
from tidegate.serving.grpc_api import GrpcApi
from tidegate.serving.grpc_server import answered
from tidegate.serving.http_api import HttpApi
from tidegate.serving.inference import Inference, Loaded
from tidegate.serving.ledger_actor import Renewal
from tidegate.serving.limits import Limits
from tidegate.serving.listener import take_ports
from tidegate.serving.meter import Meter
from tidegate.serving.quota import Quota
from tidegate.serving.status import view
from tidegate.serving.targets import WATCH_S, Target, Watch
from tidegate.serving.telemetry import Telemetry

if TYPE_CHECKING:
    from tidegate.loaded import Model


_STATISTICS_S = 2.0
# A request that would wait for so much of the time that it has is refused at once, while it can still go elsewhere.
_WAIT_SHARE = 0.25


class Replica:
    """The deployment's class; `build` wraps it as a Serve ingress."""

    def __init__(self, name: str, home: str, is_loopback: bool) -> None:
        # Where keys are kept is where the endpoint was deployed from; this node may have been started with another.
        os.environ[settings.HOME.name] = home
        self._meter = Meter()
        self._targets = Watch(name)
        self._watch = KeyWatch()
        self._watch.refresh()
        quota = Quota(name, Renewal())
        self._gate = Gate(name, self._watch, quota)
        self._inference = Inference(name, self._meter, self._gate)
        self._inference.tracing = tracing.from_environment(name)
        self._inference.others = self._others
        self._http = HttpApi(self._inference)
        loop = asyncio.get_running_loop()
        telemetry = Telemetry(name, self._meter).run(self._waiting, lambda: self._target.version if self._target else 0)
        self._chores = [
            loop.create_task(chore) for chore in (self._watch.run(), quota.run(), telemetry, self._follow())
        ]
        self._target: Target | None = None
        self._failed: dict[str, Any] | None = None
        self._loading = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._grpc = GrpcApi(self._inference)
        take_ports(self._http.handle, self._grpc.call, self._limits, is_loopback=is_loopback)

    def __del__(self) -> None:
        """Serve calls it when the replica has drained."""
        if self._inference.tracing is not None:
            self._inference.tracing.close()

    def __serve_build_asgi_app__(self) -> App:
        return App(self._http.handle, self._limits)

    async def answer_http(self, request: Request) -> Response:
        """For the root, which held the request while no replica was there."""
        return await App(self._http.handle, self._limits).response(request)

    async def answer_grpc(self, method: str, data: bytes, headers: dict[bytes, bytes]) -> bytes | HttpError:
        """As `answer_http`, with the message of a gRPC call."""
        return await answered(self._grpc.call, method, data, headers, self._limits())

    async def reconfigure(self, _: dict[str, Any]) -> None:
        """Loads the first version: Serve calls this before it sends requests. Raises what stands in its way."""
        async with self._loading:
            if self._target is None:
                document = await asyncio.to_thread(self._targets.changed)
                assert document is not None
                target = Target(**document)
                self._swap(target, await self._prepare(target))

    async def _follow(self) -> None:
        """Changes to what the file says, whenever that changes."""
        while True:
            await asyncio.sleep(WATCH_S)
            async with self._loading:
                if self._target is not None:
                    await self._change()

    async def _change(self) -> None:
        """A failure is kept for `record_routing_stats` to tell, and the old version stays."""
        try:
            document = await asyncio.to_thread(self._targets.changed)
            if document is None:
                return
            target = Target(**document)
        except FileNotFoundError:
            return  # the endpoint is being removed
        except (OSError, ValueError, TypeError) as error:
            LOGGER.warning("What to serve cannot be read, and stays as it is: %s", error)
            return
        try:
            self._swap(target, await self._prepare(target))
        except Exception as error:  # noqa: BLE001 - whatever it is, the version that serves stays
            LOGGER.exception("Version %s does not load; the one before stays.", target.ref)
            self._failed = {"config": document, "message": _sentence(error)}

    async def record_routing_stats(self) -> dict[str, Any]:
        """What this replica serves and what it failed to load: the deployer reads it to know how a rollout went."""
        version = str(self._target.version) if self._target else ""
        return {
            "serving": asdict(self._target) if self._target else None,
            "failed": self._failed,
            "statistics": self._meter.statistics(self._inference.name, version),
        }

    async def _others(self) -> list[dict[str, Any]]:
        return await asyncio.to_thread(_statistics_of_others, self._inference.name)

    def _limits(self) -> Limits:
        loaded = self._inference.loaded
        return loaded.limits if loaded is not None else Limits()

    def _waiting(self) -> int:
        loaded = self._inference.loaded
        return loaded.batcher.num_waiting if loaded is not None else 0

    async def _prepare(self, target: Target) -> Loaded:
        now = self._inference.loaded
        if now is not None and self._target is not None and self._target.digest == target.digest:
            model = now.model
        else:
            model = await asyncio.to_thread(load_checked, target)
        limits = Limits(**target.limits)
        target_ms = target.batch["latency_target_ms"]
        batcher = Batcher(
            model.predict,
            target.batch["max_rows"],
            max_waiting=limits.queue,
            max_wait_s=_WAIT_SHARE * limits.timeout_s,
            target_s=target_ms / 1000 if target_ms else None,
            on_pass=self._meter.passed,
            any_length=model.any_length,
        )
        return Loaded(target.version, model, batcher, limits)

    def _swap(self, target: Target, loaded: Loaded) -> None:
        old, self._inference.loaded = self._inference.loaded, loaded
        self._gate.set_access(Access(**target.access))
        self._log_accesses(target.log["access_fraction"])
        self._target, self._failed = target, None
        if old is not None:
            closing = asyncio.create_task(old.batcher.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _log_accesses(self, fraction: float) -> None:
        if self._inference.log is not None:
            self._inference.log.fraction = fraction
        elif fraction:
            try:
                folder = Path(ray_internals.serve_logs_folder())
            except MissingError as error:
                LOGGER.warning("%s", error)
                return
            name = self._inference.name
            self._inference.log = AccessLog(folder / f"access_{name}_{os.getpid()}.jsonl", name, fraction)


def _statistics_of_others(endpoint: str) -> list[dict[str, Any]]:
    """What the endpoint's other replicas count, of those that answer soon."""
    try:
        application = ray_internals.serve_details()["applications"].get(name_of(endpoint))
        own = ray.get_runtime_context().get_actor_name()
        others = [name for name in view(application).running if name != own]
        told = ray_internals.replica_stats(others, _STATISTICS_S)
    except RayError as error:
        LOGGER.warning("The other replicas' statistics are missing: %s", error)
        return []
    return [stats["statistics"] for stats in told.values()]


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, TidegateError) else f"{type(error).__name__}: {error}"


def load_checked(target: Target) -> Model:
    """Loads the artifact, verifies its digest and asks it one row. Raises ArtifactError and what the model raises."""
    # Imported here: the process that only builds the Serve application needs no torch.
    from tidegate.artifact import load

    started = time.monotonic()
    model = load(Path(target.path), target.digest, _device())
    check_example(model)
    LOGGER.info("Loaded %s in %.2f s.", target.ref, time.monotonic() - started)
    return model


def check_example(model: Model) -> None:
    """Asks the model one row. Raises ArtifactError for an answer that no client could be given."""
    row = model.example()
    try:
        checked_outputs(model.predict(row), model.signature, InferRequest(row, None, ()))
    except RequestError as error:
        raise ArtifactError(
            f"The model does not answer its own example: {error.happened}", remedy="Deploy another version"
        ) from error


def _device() -> str:
    """Where a replica computes: on its GPU, if it has one that is more than a number to Ray."""
    import torch

    given = ray.get_runtime_context().get_accelerator_ids().get("GPU")
    return "cuda" if given and torch.cuda.is_available() else "cpu"


def build(args: dict[str, Any]) -> serve.Application:
    """The Serve application of endpoint `args["name"]`. Named by import path in the declarative configuration."""
    return serve.deployment(name=DEPLOYMENT)(serve.ingress()(Replica)).bind(
        args["name"], args["home"], args["is_loopback"]
    )
