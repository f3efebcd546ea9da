"""The Python API, for a driver or a notebook: `import tidegate as tg`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tidegate import connection, lifecycle, registration, registry, tracking
from tidegate.async_client import AsyncClient
from tidegate.batch import run as batches
from tidegate.batch.run import Batch
from tidegate.client import Client
from tidegate.errors import ClusterError, SpecError
from tidegate.handle import FoundRun, Loop, Run
from tidegate.registry import Version
from tidegate.remote import run as remote
from tidegate.remote.words import ENDPOINT
from tidegate.scheduling import arbiter
from tidegate.scheduling.report import Report
from tidegate.serving import deploy as serving
from tidegate.serving.status import EndpointStatus
from tidegate.spec import run as run_spec
from tidegate.spec.endpoint import Endpoint, wanted
from tidegate.spec.run import Spec
from tidegate.tracking import RunRecord
from tidegate.transforms.base import Array

if TYPE_CHECKING:
    from torch import nn

_ASK_FAR = "tidegate.Client(url), with the address where its endpoints answer"


@dataclass(frozen=True)
class Deployed:
    """An endpoint that serves."""

    status: EndpointStatus

    @property
    def url(self) -> str:
        return self.status.url

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Answers by output name, `[rows, ...]`, for columns of rows. Raises RequestError for rows that do not fit."""
        _refuse_far("asking an endpoint", _ASK_FAR)
        with Client(serving.serve_url()) as client:
            return client.predict(self.status.name, inputs)

    async def apredict(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """As `predict`, for a coroutine. For many calls at once an AsyncClient of your own keeps its connections."""
        _refuse_far("asking an endpoint", _ASK_FAR)
        async with AsyncClient(await asyncio.to_thread(serving.serve_url)) as client:
            return await client.predict(self.status.name, inputs)


def connect(address: str | None = None) -> None:
    """Make this process a driver: of `address`, of RAY_ADDRESS, or of the cluster that `tidegate up` started.

    With `http://head:8265`, the address of a dashboard, the same calls are carried out by jobs on that cluster.
    """
    connection.connect(address)


def load_spec(path: str | Path) -> Spec:
    """Read a run spec from a YAML file. Raises SpecError with every mistake in it."""
    return run_spec.load(path)


def train(
    spec: Spec | str | Path,
    *,
    loop: Loop | None = None,
    name: str | None = None,
    follow: bool = True,
    detach: bool = False,
) -> Run:
    """Start a run, or go on with the run of that name that did not finish.

    With `follow` its progress is printed and the call returns when it is over, raising what failed. `loop` is a loop of
    your own in place of Tidegate's: a function of a Fit. With `detach` the driver is a job on the cluster, which
    outlives this process, and the call returns at once; so it is, with or without `detach`, where the cluster is
    reached by http://, and Ctrl-C then only ends looking at it.
    """
    is_far = connection.is_far()
    if (detach or is_far) and loop is not None:
        raise SpecError(
            "a loop of your own cannot be sent to a job", remedy="submit the script that calls tidegate.train as a job"
        )
    if not is_far and not detach:
        connect()
    if jobs := connection.far():
        submitted: Run = remote.train(jobs, spec, name, print)
    elif detach:
        submitted = _detached(_located(spec), name)
    else:
        ready = _located(spec)
        run = Run(name or lifecycle.new_run(ready), ready, loop)
        run.begin(follow=follow)
        return run
    if follow and not detach:
        submitted.begin(follow=True)
    return submitted


def _located(spec: Spec | str | Path) -> Spec:
    return run_spec.located(spec, Path.cwd()) if isinstance(spec, Spec) else load_spec(spec)


def _detached(spec: Spec, name: str | None) -> Run:
    if name is not None:
        connect()
        lifecycle.refuse_taken(name)
    return remote.submit(connection.jobs(), remote.JobRun, spec, name or lifecycle.new_run(spec))


def get_run(name: str) -> Run:
    """A run by its name, to ask something of it. Raises NotFoundError when there is none."""
    if jobs := connection.far():
        return remote.find(jobs, name)
    return FoundRun(name, lifecycle.stored_spec(name))


def deploy(endpoint: Endpoint | str | Path) -> Deployed:
    """Deploy an endpoint, or move it to another version; returns when it serves.

    `endpoint` may be a spec's file, or a version such as `digits@production`, for a plain endpoint of the model's name.
    """
    spec = endpoint if isinstance(endpoint, Endpoint) else wanted(endpoint)
    if jobs := connection.far():
        text = json.dumps(spec.model_dump(mode="json", exclude_unset=True))
        return Deployed(EndpointStatus(**jobs.call("deploy", files={ENDPOINT: text})))
    connect()
    return Deployed(serving.deploy(spec))


def remove(endpoint: str) -> None:
    """Take an endpoint away. Its model versions stay."""
    if jobs := connection.far():
        jobs.call("remove", endpoint=endpoint)
        return
    connect()
    serving.remove(endpoint)


def predict(endpoint: str, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Ask an endpoint: answers by output name for columns of rows."""
    _refuse_far("asking an endpoint", _ASK_FAR)
    connect()
    with Client(serving.serve_url()) as client:
        return client.predict(endpoint, inputs)


def predict_batch(
    model: str | Version,
    source: str | Path,
    output: str | Path,
    *,
    workers: int = 1,
    gpu: float = 0.0,
    invalid: Literal["stop", "skip"] = "stop",
    batch_rows: int = 64,
    part_rows: int = 20_000,
    white: float = 255.0,
    say: Callable[[str], None] = print,
    on_progress: Callable[[int, int], None] = lambda rows, total: None,
) -> Batch:
    """Ask a model version about all rows of a source: Parquet files in the folder `output`, a row for each, in order.

    The answers are those of an endpoint with `batch.max_rows` at `batch_rows`. A row that the model refuses raises
    DataError, which names it; with `invalid="skip"` it is written without answers and with the reason. The same call
    again computes only the parts that are missing or damaged. `manifest.json` is written when all are there. `white` is
    what a white pixel is to a model that was registered; to one that was trained here, it is what it was in training.
    """
    _refuse_far("batch inference", "jobs/predict.py, submitted as a job")
    connect()
    options = batches.Options(batch_rows, part_rows, invalid, white)
    return batches.predict(model, source, output, options, workers=workers, gpu=gpu, say=say, on_progress=on_progress)


def endpoints() -> list[EndpointStatus]:
    """All endpoints of the cluster."""
    if jobs := connection.far():
        return [EndpointStatus(**told) for told in jobs.call("endpoints")]
    connect()
    return serving.endpoints()


def runs() -> list[RunRecord]:
    """Recorded runs, newest first."""
    if jobs := connection.far():
        return [RunRecord(**told) for told in jobs.call("runs")]
    return tracking.runs()


def capacity_report() -> Report:
    """Who has the cluster's devices, who wants them, and why the last decisions were made."""
    _refuse_far("the report", "`tidegate --address ... capacity`")
    connection.connect()
    return arbiter.report()


def register(
    what: nn.Module | str | Path,
    *,
    name: str,
    example: object = None,
    build: str | None = None,
    args: Mapping[str, Any] | None = None,
    inputs: str | Sequence[str] | None = None,
    alias: str | None = None,
    reason: str = "registered",
) -> Version:
    """Register a model that is trained already: a module, a .safetensors file, or a Hugging Face folder.

    `example` is a few rows of what the module takes: an array, a mapping of arrays, a DataFrame, or a file of one.
    `build` names what makes the module, as `package.module:name`, and `args` are its arguments; a module without
    `build` is made by its class. `inputs` names the columns of the example to take; a single name makes all of them one
    input. The same content is registered once. No cluster is needed. Raises SpecError for what cannot be registered.
    """
    about = registration.About(example, build, args, inputs)
    return registration.register(what, about, name=name, alias=alias, reason=reason, who=lifecycle.user())


def set_alias(name: str, alias: str, version: Version | int, *, reason: str) -> Version:
    """Move an alias. Endpoints that follow it move with it, within seconds."""
    number = version if isinstance(version, int) else version.number
    if jobs := connection.far():
        return remote.version(jobs.call("set_alias", name=name, alias=alias, version=number, reason=reason))
    return registry.set_alias(name, alias, number, who=lifecycle.user(), why=reason)


def versions(name: str | None = None) -> list[Version]:
    """Registered model versions, newest first."""
    if jobs := connection.far():
        return [remote.version(told) for told in jobs.call("versions", name=name)]
    return registry.versions(name)


def _refuse_far(what: str, instead: str) -> None:
    if connection.is_far():
        raise ClusterError(f"{what} is not done through the Jobs API", remedy=f"use {instead}")
