"""Tells the run's monitor when workers are lost."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from tidegate.training.peers import PeerLostError


class Losses(UserCallback):  # type: ignore[misc]
    """Lives in Ray Train's controller, which dies of what a callback raises: it sends, and waits for nothing."""

    def __init__(self, monitor: Any) -> None:
        self.monitor = monitor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.monitor.tell_loss.remote(described(worker_exceptions))


def described(worker_exceptions: dict[int, Exception]) -> str:
    """Which workers were lost, and how. Those that only missed another are not named, unless there is no other."""
    missed = {rank for rank, error in worker_exceptions.items() if PeerLostError.__name__ in repr(error)}
    ranks = sorted(worker_exceptions.keys() - missed or worker_exceptions)
    named = ", ".join(map(str, ranks[:8])) + (" ..." if ranks[8:] else "")
    reason = str(worker_exceptions[ranks[0]]).strip().partition("\n")[0].partition(". ")[0] if ranks else ""
    return f"worker{'s' * (len(ranks) > 1)} {named}: {reason or 'no reason given'}"
