"""Runs whose driver is a job: they outlive whoever submitted them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tidegate import lifecycle
from tidegate.console import Console
from tidegate.errors import SpecError
from tidegate.evaluation import Report
from tidegate.handle import WatchedRun
from tidegate.models.custom import code_of
from tidegate.outcome import Outcome
from tidegate.registry import Version
from tidegate.remote.jobs import Jobs
from tidegate.remote.words import SPEC
from tidegate.serving.status import EndpointStatus
from tidegate.spec import document
from tidegate.spec import run as run_spec
from tidegate.spec.run import Spec
from tidegate.told import left_alone
from tidegate.training.progress import News, Progress, Totals


class JobRun(WatchedRun):
    """A run that a job carries, of a cluster that this process is a driver of. Ctrl-C only ends looking at it."""

    def __init__(self, name: str, spec: Spec, jobs: Jobs, job: str | None) -> None:
        super().__init__(name, spec)
        self.job, self._jobs = job, jobs

    def _carry(self, console: Console) -> None:
        self._is_watched = True
        try:
            super()._carry(console)
        except KeyboardInterrupt:
            self._is_watched, self._error = False, None
            self._over.clear()
            raise KeyboardInterrupt(left_alone(self.name)) from None

    def _drive(self, console: Console) -> Outcome:
        told = self._jobs.follow(self.job, console.say) if self.job else None
        # Of a run that no job carries, or whose last job only let it go on, the cluster's records tell.
        return outcome(told or self._jobs.call("outcome", name=self.name))


class RemoteRun(JobRun):
    """The same of a cluster that only its Jobs API reaches. Each question starts a process there: it takes seconds."""

    def resize(self, workers: int) -> None:
        self._jobs.call("resize", name=self.name, workers=workers)

    def pause(self) -> None:
        self._jobs.call("pause", name=self.name)

    def resume(self) -> None:
        self._jobs.call("resume", name=self.name)

    def stop(self) -> None:
        self._jobs.call("stop", name=self.name)

    def status(self) -> News:
        return news(self._jobs.call("status", name=self.name))


def submit(jobs: Jobs, kind: type[JobRun], spec: Spec, name: str) -> JobRun:
    """Start the driver of a run as a job; `spec` holds for the cluster. Sources of the person's own model travel."""
    files = dict(code_of(spec.model).files)
    if SPEC in files:
        raise SpecError(f"a file {SPEC} of your own cannot travel", remedy="give it another name")
    files[SPEC] = yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    job = jobs.submit(["call", "train", json.dumps({"name": name})], files=files, run=name)
    return kind(name, spec, jobs, job)


def train(jobs: Jobs, spec: Spec | str | Path, name: str | None, say: Callable[[str], None]) -> JobRun:
    """Start a run in a cluster that only its Jobs API reaches. Raises ConflictError for a name that is taken."""
    read, folder = (spec, Path.cwd()) if isinstance(spec, Spec) else (document.read(Spec, spec), Path(spec).parent)
    ready, notes = run_spec.shipped(read, folder.resolve())
    for note in notes:
        say(note)
    if name is not None:
        jobs.call("check", name=name)
    return submit(jobs, RemoteRun, ready, name or lifecycle.new_run(ready))


def find(jobs: Jobs, name: str) -> RemoteRun:
    """A run by its name. Raises NotFoundError."""
    found = jobs.call("spec", name=name)
    return RemoteRun(name, document.parse(Spec, found, source=f"the spec of {name}"), jobs, jobs.job_of(name))


def outcome(told: Any) -> Outcome:
    """What the cluster's side told of the end of a run."""
    endpoint = EndpointStatus(**told["endpoint"]) if told["endpoint"] else None
    report = Report.from_json(told["report"])
    return Outcome(told["run"], version(told["version"]), report, endpoint, told["missed"])


def version(told: Any) -> Version:
    return Version(**(told | {"aliases": tuple(told["aliases"])}))


def news(told: Any) -> News:
    rebuilt = {"progress": Progress(**told["progress"]), "totals": Totals(**told["totals"])}
    return News(**(told | rebuilt | {"bounds": tuple(told["bounds"])}))
