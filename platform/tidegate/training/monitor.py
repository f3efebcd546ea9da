"""The actor that stands for a run while it goes on: what is asked of it, how far it is, and what it has been through.

One a run, owned by its driver, so that it goes when the driver goes. A person's command, a signal, a node that is
drained and the arbiter all ask here. The workers' first rank waits for its orders here; the controller of the workers
looks every poll at what size is wanted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tidegate.errors import ConflictError, SpecError, TidegateError, TrainingError
from tidegate.training.claim import Claim, Standing, Wish
from tidegate.training.progress import News, Phase, Progress, Totals, counted

MAX_LOSSES = 5
"""How often a run may lose its workers without having got one step further."""

Order = Literal["none", "yield", "leave", "abort"]
"""For the workers: go on; checkpoint and wait to be replaced; checkpoint and return; end at once."""
ORDERS: tuple[Order, ...] = ("none", "yield", "leave", "abort")
"""Each outweighs those before it."""
Action = Literal["train", "pause", "stop"]
HEARD_S = 10.0
"""A run that was given another size and can have it has begun to change by then."""
GIVEN_BACK_S = 1.0
"""About so long a group that is replaced still holds its devices: they are on their way, not to be asked for again."""
RESIZE_S = 5.0
"""What a change of size is taken to cost before one was seen."""


@dataclass(frozen=True)
class View:
    """What the controller of the workers needs to know.

    `wanted` is the most workers the run may have, `asks` how often somebody has asked for a size, `lends` whether it
    would have more if others did not need them.
    """

    wanted: int
    asks: int
    ends: bool
    group: int
    yielded: bool
    lends: bool


class Monitor:
    """All methods run in one event loop, one at a time between awaits."""

    def __init__(
        self, wish: Wish, *, resizable: bool, totals: Totals, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`totals` are those of earlier drivers of the run."""
        self.wish, self.resizable = wish, resizable
        self.bounds = (wish.low, wish.high)
        self.action: Action = "train"
        self.wanted: int | None = None
        self.given: int | None = None
        self.asks = 0
        self.progress, self.totals = Progress(), totals
        self.failure: TidegateError | None = None
        self.highest = 0
        self.group = 0
        self.events: list[tuple[str, float]] = []
        self._clock = clock
        self._stage: Phase = "preparing"
        self._resumes = False
        self._is_held = False
        self._given_at = self._changed_at = float("-inf")
        self._nodes: tuple[str, ...] = ()
        self._leaving_nodes: tuple[str, ...] = ()
        self._left_at = float("-inf")
        self._note_of_queue = ""
        self._order: Order = "none"
        self._ordered = asyncio.Event()
        self._yielded = False
        self._leaving: Literal["resize", "pause", "loss", "none"] = "none"
        self._stopped_at = clock()
        self._losses = 0
        self._told_group = Progress()
        self._epochs: list[Mapping[str, Any]] = []
        self._last_epoch = 0
        self._lines: list[str] = []

    @property
    def phase(self) -> Phase:
        """What is asked of the run counts before what its driver and workers said last."""
        if self._stage == "finishing":
            return "finishing"
        if self.action == "stop" or self.failure:
            return "stopping"
        if self.action == "pause":
            return "pausing" if self._stage != "paused" else "waiting" if self._is_held else "paused"
        return "yielding" if self._stage == "training" and self._order == "yield" else self._stage

    # Asked from outside.

    async def ask_size(self, workers: int, why: str) -> None:
        """Change to so many workers, or as many as there is room for. Raises SpecError outside the run's bounds."""
        low, high = self.bounds
        if not self.resizable:
            raise ConflictError(
                "this run cannot be resized: this release of Ray lacks what that stands on",
                remedy="stop it, change train.workers in its spec, and go on with `tidegate train SPEC --name RUN`",
            )
        if not low <= workers <= high:
            raise SpecError(
                f"{counted(workers, 'worker')}", expected=f"{low} to {high}, as train.workers of the run says"
            )
        self._refuse_if_ending()
        self.wanted = workers
        self.asks += 1
        self._note("asked")
        self._lines.append(f"asked for {counted(workers, 'worker')} ({why})")

    async def ask_pause(self, why: str) -> None:
        """Checkpoint and give everything back; the driver waits."""
        self._refuse_if_ending()
        self._resumes = False
        if self._is_held:
            self._is_held = False
            self._lines.append(f"paused ({why})")
        if self.action == "train":
            self.action = "pause"
            self._lines.append(f"pausing at a checkpoint ({why})")
            self._give("leave")

    async def ask_resume(self) -> None:
        """Go on after a pause; at once when it is reached, if the run is still on its way there."""
        self._refuse_if_ending()
        if self._is_held:
            self._lines.append("it goes on by itself when there is room")
        elif self.phase == "pausing":
            # The workers have their order and will leave: the driver must find that this was meant.
            self._resumes = True
        elif self.phase == "paused":
            self._resume()

    async def ask_stop(self, why: str) -> None:
        """Checkpoint and end. The run can be resumed by its name."""
        self._refuse_if_finishing()
        if self.action != "stop":
            self.action = "stop"
            self._lines.append(f"stopping at a checkpoint ({why})")
            self._give("leave")

    def _refuse_if_ending(self) -> None:
        self._refuse_if_finishing()
        if self.action == "stop" or self.failure:
            raise ConflictError("the run is ending", remedy="start it again by its name when it has ended")

    def _refuse_if_finishing(self) -> None:
        if self._stage == "finishing":
            raise ConflictError("training is over: the model is being evaluated and registered", remedy="wait for it")

    def _resume(self) -> None:
        self.action, self._stage, self._resumes = "train", "waiting", False
        self._lines.append("resumed")

    def _give(self, order: Order) -> None:
        if ORDERS.index(order) > ORDERS.index(self._order):
            self._order = order
            self._ordered.set()

    # Asked and told by the arbiter.

    async def claim(self) -> Claim:
        """How the run stands."""
        now, changes = self._clock(), self.totals.resizes + self.totals.restarts
        high = self.bounds[1] if self.wanted is None else self.wanted
        cost = self.totals.restarting_s / changes if changes else RESIZE_S
        nodes = self._leaving_nodes if not self._nodes and now - self._left_at < GIVEN_BACK_S else self._nodes
        return Claim(self.wish, self._standing(), high, self.given, nodes, now - self._changed_at, cost)

    def _standing(self) -> Standing:
        if self.phase in ("preparing", "stopping", "finishing") or (self.action == "pause" and not self._is_held):
            return "away"
        if self.phase == "waiting":
            return "queued"
        heard = self._clock() - self._given_at > HEARD_S or self.given in (None, self.progress.workers)
        return "training" if self.phase == "training" and heard else "changing"

    async def allot(self, workers: int, why: str) -> None:
        """So many workers at most from now on. 0: checkpoint, give everything back, and wait to be given some."""
        trains = self.action == "train" and self._stage in ("starting", "training")
        is_known = workers == self.given and (workers > 0 or not trains)
        if self._stage == "finishing" or self.action == "stop" or self.failure or is_known:
            return
        self.given, self._given_at = workers, self._clock()
        if workers and self._is_held:
            self._is_held = False
            if self._stage == "paused":
                self._resume()
            else:
                self._resumes = True
        elif workers:
            self.asks += 1
            self._note("asked")
        elif trains:
            self.action, self._is_held, self._resumes = "pause", True, False
            self._lines.append(f"giving everything back at a checkpoint ({why})")
            self._give("leave")

    async def tell_queue(self, note: str) -> None:
        """Where in the queue the run is, and what for."""
        self._note_of_queue = note

    # Told and asked by the controller of the workers.

    async def view(self) -> View:
        wanted = self.bounds[1] if self.wanted is None else self.wanted
        given = wanted if self.given is None else min(wanted, self.given)
        ends = self.action != "train" or self.failure is not None
        return View(given, self.asks, ends, self.group, self._yielded, lends=given < wanted)

    async def tell_nodes(self, nodes: tuple[str, ...]) -> None:
        """The node of each worker; none while a group is replaced."""
        if self._nodes and not nodes:
            self._leaving_nodes, self._left_at = self._nodes, self._clock()
        self._nodes = nodes

    async def order_yield(self, group: int, size: int, why: str) -> None:
        """The workers should checkpoint and be replaced by `size` others."""
        if group == self.group and self.phase == "training":
            self._lines.append(f"changing to {counted(size, 'worker')} ({why})")
            self._give("yield")

    async def tell_loss(self, what: str) -> None:
        """Workers died or raised an error."""
        if self.failure:
            return
        self._losses += 1
        self._end_group("loss")
        self._stage = "starting"
        then = {"train": "going on from", "pause": "pausing at", "stop": "stopping at"}[self.action]
        self._lines.append(f"lost workers: {what}; {then} the last checkpoint")
        if self._losses > MAX_LOSSES:
            await self.tell_failure(
                TrainingError(
                    f"workers were lost {self._losses} times in a row and no step was finished in between: {what}"
                )
            )

    # Told by the workers' first rank.

    async def tell_line(self, line: str) -> None:
        """A sentence for the person who follows the run."""
        self._lines.append(line)

    async def tell_started(self, step: int, workers: int, computed: int) -> int:
        """A group of workers begins at `step`; the one before had computed `computed` steps. The group's number."""
        repeated = max(0, computed - step)
        self._count(repeated)
        if computed > self.highest:
            self.highest, self._losses = computed, min(self._losses, 1)
        self.group += 1
        self._changed_at = self._clock()
        self._renew_orders()
        self._told_group = Progress()
        self.progress = replace(self.progress, step=step, workers=workers)
        self._stage = "training"
        self._note("started")
        if self.group > 1 or step:
            again = f"; {counted(repeated, 'step')} computed again" if repeated else ""
            self._lines.append(f"training with {counted(workers, 'worker')} from step {step}{again}")
        return self.group

    def _count(self, repeated: int) -> None:
        """Another group begins. That an earlier driver was lost shows in the steps that are computed again."""
        unforeseen = self._leaving == "none" and (self.group > 0 or repeated > 0)
        self.totals = self.totals.plus(
            groups=1,
            steps_twice=repeated,
            resizes=self._leaving == "resize",
            restarts=self._leaving == "loss" or unforeseen,
        )
        self._leaving = "none"

    def _renew_orders(self) -> None:
        # Whoever still waits for an order to the group before is let go.
        self._ordered.set()
        self._ordered = asyncio.Event()
        self._order = "abort" if self.failure else "none" if self.action == "train" else "leave"
        self._yielded = False

    async def await_order(self, group: int) -> Order:
        """Returns when this group of workers is to do something other than go on."""
        while group == self.group and self._order == "none":
            await self._ordered.wait()
        return self._order if group == self.group else "abort"

    async def tell(self, progress: Progress) -> None:
        if progress.step > self.highest:
            self.highest, self._losses = progress.step, 0
        if not self._told_group.workers:
            self._note("first_step")
            self.totals = self.totals.plus(restarting_s=self._clock() - self._stopped_at if self.group > 1 else 0.0)
        before, self._told_group = self._told_group, progress
        self.totals = self.totals.plus(
            training_s=progress.training_s - before.training_s,
            checkpointing_s=progress.checkpointing_s - before.checkpointing_s,
            checkpoints=progress.checkpoints - before.checkpoints,
        )
        self.progress = progress
        self._stopped_at = self._clock()

    async def tell_epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch is over. One that is computed again after a restart is not told again."""
        if record["epoch"] > self._last_epoch:
            self._last_epoch = record["epoch"]
            self._epochs.append(record)

    async def tell_saved(self, order: Order) -> None:
        """The state is durable, and the workers wait or return as ordered."""
        self._note("saved")
        self._end_group("resize" if order == "yield" else "pause")

    async def tell_failure(self, error: TidegateError) -> None:
        """What ends the run; a restart cannot mend it."""
        self.failure = self.failure or error
        self._give("abort")

    # Told and asked by the driver.

    async def tell_phase(self, phase: Phase, *, anew: bool = False) -> None:
        """What the driver or the controller of the workers is at, where the workers do not say it themselves.

        `anew`: nothing is left of an earlier group, and what the arbiter gave then is no longer so.
        """
        if anew:
            self.given = None
        # All that is said here is said while there are no workers.
        self._stage, self._yielded, self._nodes = phase, False, ()
        self.progress = replace(self.progress, workers=0, rows_per_s=0.0)
        if phase == "starting":
            self._stopped_at = self._clock()
        if phase == "paused" and self.action == "pause":
            self.totals = self.totals.plus(pauses=1)
            if self._resumes:
                self._resume()

    async def tell_paused(self, step: int, run: str) -> None:
        """The workers are gone, and the driver waits."""
        how = "it goes on when there is room" if self._is_held else f"`tidegate resume {run}` goes on"
        self._lines.append(f"paused at step {step}; {how}")

    async def allotment(self) -> int | None:
        """What the arbiter gave; None where there is none that has spoken."""
        return self.given

    async def state(self) -> tuple[Action, TidegateError | None]:
        return self.action, self.failure

    async def news(self) -> News:
        epochs, self._epochs = self._epochs, []
        lines, self._lines = self._lines, []
        return replace(await self.status(), epochs=epochs, lines=lines)

    async def status(self) -> News:
        """As `news`, for others than the driver: it takes nothing away."""
        note = self._note_of_queue if self.phase == "waiting" else ""
        return News(self.progress, [], self.phase, self.totals, self.wanted, [], self.bounds, note)

    async def history(self) -> list[tuple[str, float]]:
        """What happened when, in seconds since the epoch: asked, saved, started, first_step."""
        return self.events

    def _end_group(self, reason: Literal["resize", "pause", "loss"]) -> None:
        self._leaving, self._stopped_at = reason, self._clock()
        self._yielded = reason == "resize"
        self.progress = replace(self.progress, workers=0, rows_per_s=0.0)

    def _note(self, what: str) -> None:
        self.events.append((what, time.time()))
