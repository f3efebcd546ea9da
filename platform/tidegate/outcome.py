"""What a run came to: told by its driver, or read from what the driver recorded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tidegate import artifact, evaluation, registry, settings, standing, told
from tidegate.errors import ArtifactError, RequirementError, StoppedError, TrainingError, UnavailableError
from tidegate.evaluation import Report
from tidegate.registry import Version
from tidegate.serving.status import EndpointStatus
from tidegate.spec.run import Spec

REPORT = "report.json"
"""In what an artifact has about itself."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `missed` are the requirements it missed; then it was registered and not published."""

    run: str
    version: Version
    report: Report
    endpoint: EndpointStatus | None
    missed: list[str]

    def raise_if_missed(self) -> None:
        """Raise RequirementError when `evaluate.require` was missed."""
        if self.missed:
            raise RequirementError(
                f"{self.version.ref} is registered but not published: {'; '.join(self.missed)}",
                remedy="train a better version, or change evaluate.require",
            )


def recorded(name: str, spec: Spec) -> Outcome:
    """What a run that is over came to, from its records; the endpoint it may have published is not looked at.

    Raises StoppedError, TrainingError with what its driver said last, or UnavailableError when its driver was lost.
    """
    found = standing.one_run(name)
    if found.status == "stopped":
        raise StoppedError(f"run {name} was stopped", remedy=f"go on with it: tidegate resume {name}")
    if found.status == "failed":
        raise TrainingError(f"run {name} {_last_words(name)}", remedy=f"tidegate logs {name} has the rest")
    made = standing.version_of(found)
    if found.status != "finished" or made is None:
        raise UnavailableError(f"run {name} has no driver any more", remedy=f"go on with it: tidegate resume {name}")
    version = registry.version(made)
    missed = evaluation.check(spec.evaluate.require, version.metrics)
    return Outcome(name, version, _report(version), None, missed)


def _last_words(name: str) -> str:
    """`failed: why`, as the driver told it, or `failed` alone."""
    told_last = (line.partition("  ")[2] for line in reversed(told.text(settings.home() / "runs" / name).splitlines()))
    return next((words for words in told_last if words.startswith("failed: ")), "failed")


def _report(version: Version) -> Report:
    path = Path(version.path) / artifact.ABOUT / REPORT
    try:
        return Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"the report of {version.ref} cannot be read: {error}",
            remedy="its figures are in `tidegate models show`, and the model serves without it",
        ) from error
