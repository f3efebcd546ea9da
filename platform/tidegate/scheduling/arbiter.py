"""The arbiter: one actor that looks at the cluster every moment and tells each run its size.

It keeps nothing that it could not see again: killed, it is started anew and goes on from what it finds. Runs and
replicas do not wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from tidegate import ray_internals, settings
from tidegate.cluster import NAMESPACE
from tidegate.errors import SpecError, UnavailableError
from tidegate.scheduling.demand import demand
from tidegate.scheduling.observe import Observer
from tidegate.scheduling.policy import Decision, decide
from tidegate.scheduling.report import Event, Report, holders
from tidegate.scheduling.snapshot import Run, Snapshot
from tidegate.scheduling.timeline import Sample, device_of, sample
from tidegate.spec import document
from tidegate.spec.capacity import CapacityRules
from tidegate.training import control

logger = logging.getLogger(__name__)
RULES = "capacity.yaml"
LOOK_EVERY_S = 0.5
ASK_AGAIN_S = 15.0
KEPT_EVENTS, KEPT_SAMPLES = 500, 7200
ANSWER_S = 30.0


class Rules:
    """The person's rules, read again whenever their file changes. What cannot be read leaves those of before."""

    def __init__(self, path: Path) -> None:
        self.path, self.rules, self.trouble = path, CapacityRules(), ""
        self._seen: float | None = None

    def read(self) -> CapacityRules:
        changed = self.path.stat().st_mtime if self.path.exists() else None
        if changed != self._seen:
            self._seen, self.trouble = changed, ""
            try:
                self.rules = document.read(CapacityRules, self.path) if changed else CapacityRules()
            except SpecError as error:
                self.trouble = f"the rules of before hold: {error}"
                logger.warning("%s", self.trouble)
        return self.rules


class Arbiter:
    """Lives in a detached actor on the head node. One thread looks and tells; methods only report."""

    def __init__(self) -> None:
        self._rules = Rules(settings.home() / RULES)
        self._observer = Observer()
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._samples: deque[Sample] = deque(maxlen=KEPT_SAMPLES)
        self._report = Report("CPU")
        self._told: dict[str, str] = {}
        self._asked: list[dict[str, float]] = []
        self._asked_at = 0.0
        threading.Thread(target=self._run, name="arbiter", daemon=True).start()

    def report(self) -> Report:
        """How capacity is shared now, and how it came to be."""
        return replace(self._report, events=list(self._events), timeline=list(self._samples))

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self._round()
            except Exception as error:
                logger.exception("A round of the arbiter failed; the next one looks again.")
                self._report = replace(self._report, trouble=f"{type(error).__name__}: {error}")
            time.sleep(max(0.0, LOOK_EVERY_S - (time.monotonic() - began)))

    def _round(self) -> None:
        rules = self._rules.read()
        snapshot = self._observer.look(rules)
        decision = decide(snapshot, rules)
        self._samples.append(sample(snapshot, time.time()))
        for run in snapshot.runs:
            self._tell(run, decision)
        self._note(decision)
        self._report = Report(
            device_of(snapshot),
            holders(snapshot, decision),
            decision.queue,
            rules=rules.model_dump(),
            trouble=self._rules.trouble,
        )
        if snapshot.can_grow:
            self._ask_autoscaler(snapshot, decision)

    def _tell(self, run: Run, decision: Decision) -> None:
        """Tell a run its size. Hearing it again does nothing."""
        if run.phase not in ("queued", "training"):
            return
        size, why = decision.sizes[run.name], decision.reasons.get(run.name, "as it is")
        control.allot(run.name, size, why)
        if run.name in decision.queue:
            place = decision.queue.index(run.name) + 1
            control.tell_queue(run.name, f"{place}. in the queue: {why}")
        elif run.phase == "queued":
            control.tell_queue(run.name, "")

    def _ask_autoscaler(self, snapshot: Snapshot, decision: Decision) -> None:
        """Repeat what is wanted before it expires, and say at once when it changes."""
        wanted = demand(snapshot, decision)
        if wanted != self._asked or time.monotonic() - self._asked_at > ASK_AGAIN_S:
            self._asked, self._asked_at = wanted, time.monotonic()
            ray_internals.ask_autoscaler(control.ARBITER, wanted, expire_after_s=4 * ASK_AGAIN_S)

    def _note(self, decision: Decision) -> None:
        """Keep what was decided when it is not what was decided before."""
        now = time.time()
        for who, why in decision.reasons.items():
            if self._told.get(who) != why:
                self._events.append(Event(now, who, why))
                logger.info("%s: %s", who, why)
        self._told = dict(decision.reasons)


def ensure() -> None:
    """Start this cluster's arbiter if there is none."""
    _arbiter()


def report() -> Report:
    """How capacity is shared now, as soon as the arbiter has looked once.

    One that was just killed is waited for until it is back. Raises UnavailableError when it does not answer in time.
    """
    until, reason = time.monotonic() + ANSWER_S, "it has not looked yet"
    while time.monotonic() < until:
        try:
            found: Report = ray.get(_arbiter().report.remote(), timeout=ANSWER_S)
            if found.timeline or found.trouble:
                return found
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            reason = str(error)
        time.sleep(0.2)
    raise UnavailableError("the arbiter does not answer", remedy=f"see Ray's log of it: {reason}")


def _arbiter() -> Any:
    actor = ray.remote(Arbiter).options(
        name=control.ARBITER,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=4,
        num_cpus=0,
        resources={"node:__internal_head__": 0.001},
        runtime_env={"env_vars": {settings.HOME.name: str(settings.home())}},
    )
    return actor.remote()
