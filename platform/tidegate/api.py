"""The Python API, for a driver or a notebook: `import tidegate as tg`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidegate import connection, lifecycle, registry, tracking
from tidegate.client import Client
from tidegate.console import Console
from tidegate.errors import NotFoundError
from tidegate.lifecycle import Outcome
from tidegate.registry import Version
from tidegate.scheduling import arbiter
from tidegate.scheduling.report import Report
from tidegate.serving import deploy as serving
from tidegate.serving.status import EndpointStatus
from tidegate.spec import document
from tidegate.spec import run as run_spec
from tidegate.spec.endpoint import Endpoint
from tidegate.spec.run import Spec
from tidegate.tracking import RunRecord
from tidegate.training import control
from tidegate.training.fit import Fit
from tidegate.training.progress import News
from tidegate.transforms.base import Array

Loop = Callable[[Fit], None]


class Run:
    """A training run: of this process, from `train`, or of another, from `get_run`."""

    def __init__(self, name: str, spec: Spec, loop: Loop | None = None) -> None:
        self.name, self.spec, self._loop = name, spec, loop
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._is_ours = False
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

    def resize(self, workers: int) -> None:
        """Ask for so many workers, within `train.workers`. The model does not change by it.

        Returns when the ask is heard: the run then finishes its step, checkpoints and goes on at that size, or at as
        much of it as there is room for. Raises SpecError outside the bounds, NotFoundError when the run does not go on.
        """
        self._await_start()
        control.resize(self.name, workers, why="by a person")

    def pause(self) -> None:
        """Ask the run to checkpoint and give its workers back. Its driver waits for `resume`."""
        self._await_start()
        control.pause(self.name, why="by a person")

    def resume(self) -> None:
        """Let a paused run go on."""
        control.resume(self.name)

    def stop(self) -> None:
        """Ask the run to checkpoint and end. `train` with its name goes on with it."""
        self._await_start()
        control.stop(self.name, why="by a person")

    def status(self) -> News:
        """Where the run is, and what it has been through. Raises NotFoundError when it does not go on."""
        found = control.status(self.name)
        if found is None:
            raise NotFoundError(f"run {self.name} does not go on in this cluster", remedy="see `tidegate runs`")
        return found

    def _await_start(self) -> None:
        """A run that was just started in this process is not known to its cluster at once."""
        while self._is_ours and not self.is_over and self.name not in control.going_on():
            time.sleep(0.1)

    def _carry(self, console: Console) -> None:
        try:
            with console:
                self._outcome = lifecycle.run(
                    self.spec, name=self.name, say=console.say, on_news=console.on_news, loop=self._loop
                )
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


def train(spec: Spec | str | Path, *, loop: Loop | None = None, name: str | None = None, follow: bool = True) -> Run:
    """Start a run, or go on with the run of that name that did not end.

    With `follow` its progress is printed and the call returns when it is over, raising what failed. `loop` is a loop of
    your own in place of Tidegate's: a function of a Fit.
    """
    connect()
    spec = run_spec.located(spec, Path.cwd()) if isinstance(spec, Spec) else load_spec(spec)
    run = Run(name or lifecycle.new_run(spec), spec, loop)
    run._is_ours = True
    if follow:
        run._carry(Console())
    else:
        threading.Thread(target=run._carry_silently, daemon=True, name=run.name).start()
    return run


def get_run(name: str) -> Run:
    """A run by its name, to ask something of it. Raises NotFoundError when there is none."""
    return Run(name, lifecycle.stored_spec(name))


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


def capacity_report() -> Report:
    """Who has the cluster's devices, who wants them, and why the last decisions were made."""
    connection.connect()
    return arbiter.report()


def set_alias(name: str, alias: str, version: Version | int, *, reason: str) -> Version:
    """Move an alias. Endpoints that follow it move with it, within seconds."""
    number = version if isinstance(version, int) else version.number
    return registry.set_alias(name, alias, number, who=lifecycle.user(), why=reason)


def versions(name: str | None = None) -> list[Version]:
    """Registered model versions, newest first."""
    return registry.versions(name)
