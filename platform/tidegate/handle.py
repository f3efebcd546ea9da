"""A run in a program's hands: to wait for it, and to ask something of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from tidegate import lifecycle, outcome, standing
from tidegate.console import Console
from tidegate.errors import NotFoundError
from tidegate.outcome import Outcome
from tidegate.registry import Version
from tidegate.spec.run import Spec
from tidegate.training import control
from tidegate.training.fit import Fit
from tidegate.training.progress import News

Loop = Callable[[Fit], None]

LOOK_EVERY_S = 1.0
"""How often a run of another process is looked at for its end."""


class Run:
    """A training run that this process is the driver of, from `train`."""

    def __init__(self, name: str, spec: Spec, loop: Loop | None = None) -> None:
        self.name, self.spec, self._loop = name, spec, loop
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self.is_ours = False
        """Whether this process is its driver."""
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

    def begin(self, *, follow: bool) -> None:
        """Become the run's driver. With `follow` until it ends, printing what it tells and raising what failed."""
        self.is_ours = True
        if follow:
            self._carry(Console())
        else:
            threading.Thread(target=self._carry_silently, daemon=True, name=self.name).start()

    def _await_start(self) -> None:
        """A run that was just started in this process is not known to its cluster at once."""
        while self.is_ours and not self.is_over and self.name not in control.going_on():
            time.sleep(0.1)

    def _carry(self, console: Console) -> None:
        try:
            with console:
                self._outcome = self._drive(console)
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._over.set()

    def _drive(self, console: Console) -> Outcome:
        """Be the run's driver until it ends."""
        return lifecycle.run(self.spec, name=self.name, say=console.say, on_news=console.on_news, loop=self._loop)

    def _carry_silently(self) -> None:
        try:
            with open(os.devnull, "w") as nowhere:
                self._carry(Console(nowhere))
        except BaseException:  # noqa: BLE001 - kept, and raised by `wait`
            return


class WatchedRun(Run):
    """A run that another process drives. Somebody waits for its end from the first time that it is asked for."""

    def __init__(self, name: str, spec: Spec) -> None:
        super().__init__(name, spec)
        self._watched = threading.Lock()
        self._is_watched = False

    @property
    def is_over(self) -> bool:
        self._watch()
        return super().is_over

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        self._watch()
        return super().outcome(timeout_s)

    def _watch(self) -> None:
        with self._watched:
            if self._is_watched:
                return
            self._is_watched = True
        threading.Thread(target=self._carry_silently, daemon=True, name=self.name).start()


class FoundRun(WatchedRun):
    """A run of this cluster by its name, from `get_run`. It ends for us when its records say so."""

    def _drive(self, console: Console) -> Outcome:
        while not standing.is_over(self.name):
            time.sleep(LOOK_EVERY_S)
        return outcome.recorded(self.name, self.spec)
