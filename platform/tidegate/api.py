"""The Python API, for a driver or a notebook: `import tidegate as tg`."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidegate import connection, lifecycle, registry, tracking
from tidegate.client import Client
from tidegate.console import Console
from tidegate.lifecycle import Outcome
from tidegate.registry import Version
from tidegate.serving import deploy as serving
from tidegate.serving.status import EndpointStatus
from tidegate.spec import document
from tidegate.spec import run as run_spec
from tidegate.spec.endpoint import Endpoint
from tidegate.spec.run import Spec
from tidegate.tracking import RunRecord
from tidegate.transforms.base import Array


class Run:
    """A training run of this process."""

    def __init__(self, name: str, spec: Spec) -> None:
        self.name, self.spec = name, spec
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._over = threading.Event()

    def __repr__(self) -> str:
        return f"Run({self.name!r})"

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def wait(self, timeout_s: float | None = None) -> Version:
        """The version the run registered. Raises what made the run fail, RequirementError when it missed
        `evaluate.require`, and TimeoutError when it still goes on after `timeout_s`."""
        outcome = self.outcome(timeout_s)
        outcome.raise_if_missed()
        return outcome.version

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        """As `wait`, but also for a version that missed its requirements."""
        if not self._over.wait(timeout_s):
            raise TimeoutError(f"run {self.name} still goes on")
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    def _carry(self, console: Console) -> None:
        try:
            with console:
                self._outcome = lifecycle.run(self.spec, name=self.name, say=console.say, on_news=console.on_news)
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._over.set()

    def _carry_silently(self) -> None:
        try:
            with open(os.devnull, "w") as nowhere:
                self._carry(Console(nowhere))
        except BaseException:  # noqa: BLE001 - kept, and raised by `wait`
            return


@dataclass(frozen=True)
class Deployed:
    """An endpoint that serves."""

    status: EndpointStatus

    @property
    def url(self) -> str:
        return self.status.url

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Answers by output name, `[rows, ...]`, for columns of rows. Raises RequestError for rows that do not fit."""
        with Client(serving.serve_url()) as client:
            return client.predict(self.status.name, inputs)


def connect(address: str | None = None) -> None:
    """Make this process a driver: of `address`, of RAY_ADDRESS, or of the cluster that `tidegate up` started."""
    connection.connect(address)


def load_spec(path: str | Path) -> Spec:
    """Read a run spec from a YAML file. Raises SpecError with every mistake in it."""
    return run_spec.load(path)


def train(spec: Spec | str | Path, *, follow: bool = True) -> Run:
    """Start a run. With `follow` its progress is printed and the call returns when it is over, raising what failed."""
    connect()
    spec = run_spec.located(spec, Path.cwd()) if isinstance(spec, Spec) else load_spec(spec)
    run = Run(lifecycle.new_run(spec), spec)
    if follow:
        run._carry(Console())
    else:
        threading.Thread(target=run._carry_silently, daemon=True, name=run.name).start()
    return run


def deploy(endpoint: Endpoint | str | Path) -> Deployed:
    """Deploy an endpoint, or move it to another version; returns when it serves."""
    connect()
    spec = endpoint if isinstance(endpoint, Endpoint) else document.read(Endpoint, endpoint)
    return Deployed(serving.deploy(spec))


def remove(endpoint: str) -> None:
    """Take an endpoint away. Its model versions stay."""
    connect()
    serving.remove(endpoint)


def predict(endpoint: str, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Ask an endpoint: answers by output name for columns of rows."""
    connect()
    with Client(serving.serve_url()) as client:
        return client.predict(endpoint, inputs)


def endpoints() -> list[EndpointStatus]:
    """All endpoints of the cluster."""
    connect()
    return serving.endpoints()


def runs() -> list[RunRecord]:
    """Recorded runs, newest first."""
    return tracking.runs()


def set_alias(name: str, alias: str, version: Version | int, *, reason: str) -> Version:
    """Move an alias. Endpoints that follow it move with it, within seconds."""
    number = version if isinstance(version, int) else version.number
    return registry.set_alias(name, alias, number, who=lifecycle.user(), why=reason)


def versions(name: str | None = None) -> list[Version]:
    """Registered model versions, newest first."""
    return registry.versions(name)
