"""Runs that go on in this cluster, from outside: each has a monitor, an actor known by the run's name."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tidegate.cluster import NAMESPACE
from tidegate.errors import ConflictError, NotFoundError, UnavailableError
from tidegate.training.claim import Claim, Wish
from tidegate.training.gauges import Shown
from tidegate.training.progress import News, Totals

logger = logging.getLogger(__name__)
PREFIX = "run:"
ARBITER = "tidegate-arbiter"
GONE_AFTER_S = 15.0
"""How long the monitor of a driver that was just killed may still be there."""
ANSWER_S = 30.0
LIST_S = 5.0


@contextmanager
def monitored(wish: Wish, *, resizable: bool, totals: Totals) -> Iterator[Any]:
    """The monitor of a run that this process drives. Raises ConflictError while another process drives it."""
    # On the driver's node: it is of no use without the driver, and no other node's end should end the run.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    try:
        monitor = (
            ray.remote(num_cpus=0)(Shown)
            .options(name=PREFIX + wish.run, namespace=NAMESPACE, max_concurrency=1000, scheduling_strategy=here)
            .remote(wish, resizable=resizable, totals=totals)
        )
    except ValueError:
        raise _carried(wish.run) from None
    try:
        yield monitor
    finally:
        ray.kill(monitor)


def await_free(run: str) -> None:
    """Returns when no driver carries the run: one that was just killed is gone soon. Raises ConflictError if not."""
    until = time.monotonic() + GONE_AFTER_S
    while run in going_on():
        if time.monotonic() > until:
            raise _carried(run)
        time.sleep(0.2)


def _carried(run: str) -> ConflictError:
    return ConflictError(
        f"run {run} is being trained by another process",
        remedy=f"watch it with `tidegate status {run}`, or stop it with `tidegate stop {run}`",
    )


def going_on() -> list[str]:
    """Names of the runs that some driver of this cluster carries."""
    actors = list_named_actors(all_namespaces=True)
    return sorted(
        actor["name"].removeprefix(PREFIX)
        for actor in actors
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(PREFIX)
    )


def resize(run: str, workers: int, *, why: str) -> None:
    """Ask a run to change its size. Raises SpecError outside its bounds, NotFoundError when it does not go on."""
    _ask(run, lambda monitor: monitor.ask_size.remote(workers, why))


def pause(run: str, *, why: str) -> None:
    """Ask a run to checkpoint and give everything back."""
    _ask(run, lambda monitor: monitor.ask_pause.remote(why))


def resume(run: str) -> None:
    """Ask a paused run to go on."""
    _ask(run, lambda monitor: monitor.ask_resume.remote())


def stop(run: str, *, why: str) -> None:
    """Ask a run to checkpoint and end."""
    _ask(run, lambda monitor: monitor.ask_stop.remote(why))


def status(run: str) -> News | None:
    """How far a run is; None when no driver carries it."""
    try:
        answer: News = _ask(run, lambda monitor: monitor.status.remote())
    except NotFoundError:
        return None
    return answer


def statuses() -> dict[str, News | None]:
    """How far each run of this cluster is, by name; None for one that does not answer in time."""
    return _of_all(lambda monitor: monitor.status.remote(), LIST_S)


def claims(timeout_s: float) -> dict[str, Claim | None]:
    """What each run of this cluster asks and holds, by name; None for one that does not answer in time."""
    return _of_all(lambda monitor: monitor.claim.remote(), timeout_s)


def allot(run: str, workers: int, why: str) -> None:
    """Tell a run how many workers it gets. Nobody waits for it."""
    _tell(run, lambda monitor: monitor.allot.remote(workers, why))


def tell_queue(run: str, note: str) -> None:
    """Tell a run where in the queue it is. Nobody waits for it."""
    _tell(run, lambda monitor: monitor.tell_queue.remote(note))


def arbiter_is_there() -> bool:
    """Whether somebody in this cluster gives runs their sizes."""
    try:
        ray.get_actor(ARBITER, namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def _tell(run: str, what: Callable[[Any], Any]) -> None:
    # A run whose driver has gone since is told nothing.
    with suppress(ValueError):
        what(ray.get_actor(PREFIX + run, namespace=NAMESPACE))


def _of_all(question: Callable[[Any], Any], timeout_s: float) -> dict[str, Any]:
    asked = {}
    for run in going_on():
        try:
            asked[question(ray.get_actor(PREFIX + run, namespace=NAMESPACE))] = run
        except ValueError:
            continue  # its driver has gone since
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    found: dict[str, Any] = dict.fromkeys(asked.values())
    for answer in done:
        try:
            found[asked[answer]] = ray.get(answer)
        except ray.exceptions.RayActorError:
            del found[asked[answer]]  # the same
    return found


def history(run: str) -> list[tuple[str, float]]:
    """When a run was asked, saved, started and had its first step: `(what, seconds since the epoch)`."""
    found: list[tuple[str, float]] = _ask(run, lambda monitor: monitor.history.remote())
    return found


def _ask(run: str, question: Callable[[Any], Any]) -> Any:
    try:
        monitor = ray.get_actor(PREFIX + run, namespace=NAMESPACE)
        return ray.get(question(monitor), timeout=ANSWER_S)
    except (ValueError, ray.exceptions.RayActorError):
        names = ", ".join(going_on()) or "none"
        raise NotFoundError(
            f"run {run} does not go on in this cluster", expected=f"one of: {names}", remedy="see `tidegate runs`"
        ) from None
    except ray.exceptions.GetTimeoutError:
        raise UnavailableError(
            f"run {run} does not answer for {ANSWER_S:g} s", remedy="see whether its driver's machine is overloaded"
        ) from None
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
