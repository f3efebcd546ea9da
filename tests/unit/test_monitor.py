"""What a run hears, does and counts, told by hand: no Ray, and time moves only when a test says so."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tidegate.errors import ConflictError, SpecError, TrainingError
from tidegate.training.claim import Wish
from tidegate.training.monitor import GIVEN_BACK_S, HEARD_S, MAX_LOSSES, RESIZE_S, Monitor, Order
from tidegate.training.progress import STATUS, Last, News, Phase, Progress, Totals

WHO = "by a test"


class Clock:
    """Seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def monitor_of(*, resizable: bool = True, totals: Totals | None = None, clock: Clock | None = None) -> Monitor:
    return Monitor(
        Wish("run", "model", {"CPU": 1}, 1, 4), resizable=resizable, totals=totals or Totals(), clock=clock or Clock()
    )


def story(tell: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that awaits."""

    @functools.wraps(tell)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(tell(*arguments, **named))

    return run


async def order_of(monitor: Monitor, group: int) -> Order:
    """What the workers of a group have been ordered by now."""
    waiting = asyncio.ensure_future(monitor.await_order(group))
    for _ in range(3):
        await asyncio.sleep(0)
    if waiting.done():
        return waiting.result()
    waiting.cancel()
    return "none"


def at(step: int, *, workers: int = 2, training_s: float = 0.0, checkpointing_s: float = 0.0) -> Progress:
    return Progress(
        step=step,
        total_steps=100,
        loss=0.5,
        rows_per_s=10.0,
        workers=workers,
        training_s=training_s,
        checkpointing_s=checkpointing_s,
    )


async def training(monitor: Monitor, *, step: int = 0, workers: int = 2, computed: int = 0) -> int:
    """Bring a run to its first step after `step`; its group."""
    await monitor.tell_phase("waiting")
    await monitor.tell_phase("starting")
    group = await monitor.tell_started(step, workers, computed)
    await monitor.tell(at(step + 1, workers=workers))
    return group


async def bring(monitor: Monitor, phase: Phase) -> None:
    """Bring a new run to any phase."""
    if phase in ("preparing", "waiting", "starting", "finishing"):
        await monitor.tell_phase(phase)
        return
    group = await training(monitor)
    if phase == "yielding":
        await monitor.order_yield(group, 3, WHO)
    if phase in ("pausing", "paused"):
        await monitor.ask_pause(WHO)
    if phase == "paused":
        await monitor.tell_saved("leave")
        await monitor.tell_phase("paused")
    if phase == "stopping":
        await monitor.ask_stop(WHO)


EARLY: tuple[Phase, ...] = ("preparing", "waiting", "starting")
BUSY: tuple[Phase, ...] = (*EARLY, "training", "yielding")
PHASES: tuple[Phase, ...] = (*BUSY, "pausing", "paused", "stopping", "finishing")


@pytest.mark.parametrize("phase", PHASES)
@story
async def test_a_phase_is_told_as_it_is(phase: Phase) -> None:
    monitor = monitor_of()
    await bring(monitor, phase)
    assert monitor.phase == (await monitor.status()).phase == phase


@pytest.mark.parametrize("phase", [*BUSY, "pausing", "paused"])
@story
async def test_a_size_is_heard_until_the_run_ends(phase: Phase) -> None:
    monitor = monitor_of()
    await bring(monitor, phase)
    assert (await monitor.view()).wanted == 4
    await monitor.ask_size(3, WHO)
    assert (await monitor.view()).wanted == 3
    news = await monitor.news()
    assert (news.wanted, news.bounds, news.phase) == (3, (1, 4), phase)
    assert "asked for 3 workers (by a test)" in news.lines


@pytest.mark.parametrize("workers", [0, 5])
@story
async def test_a_size_outside_the_bounds_is_refused_with_them(workers: int) -> None:
    monitor = monitor_of()
    with pytest.raises(SpecError, match="expected 1 to 4"):
        await monitor.ask_size(workers, WHO)
    assert (await monitor.status()).wanted is None


@story
async def test_without_a_ground_in_ray_a_size_is_refused() -> None:
    with pytest.raises(ConflictError, match="--name RUN"):
        await monitor_of(resizable=False).ask_size(2, WHO)


@pytest.mark.parametrize("phase", ["stopping", "finishing"])
@story
async def test_a_run_that_ends_takes_no_more_asks(phase: Phase) -> None:
    monitor = monitor_of()
    await bring(monitor, phase)
    for ask in (monitor.ask_size(3, WHO), monitor.ask_pause(WHO), monitor.ask_resume()):
        with pytest.raises(ConflictError):
            await ask
    assert monitor.phase == phase


@story
async def test_a_run_that_failed_takes_no_more_asks_and_nothing_softens_its_end() -> None:
    monitor = monitor_of()
    group = await training(monitor)
    await monitor.tell_failure(TrainingError("first"))
    await monitor.tell_failure(TrainingError("second"))
    with pytest.raises(ConflictError):
        await monitor.ask_pause(WHO)
    await monitor.ask_stop("SIGTERM")
    assert await order_of(monitor, group) == "abort"
    action, failure = await monitor.state()
    assert (action, str(failure)) == ("stop", "first")
    assert (await monitor.view()).ends


@pytest.mark.parametrize("phase", BUSY)
@story
async def test_a_pause_is_heard_in_every_phase_and_the_workers_leave(phase: Phase) -> None:
    monitor = monitor_of()
    await bring(monitor, phase)
    await monitor.ask_pause(WHO)
    await monitor.ask_pause(WHO)
    assert monitor.phase == "pausing"
    assert (await monitor.view()).ends
    assert (await monitor.news()).lines.count("pausing at a checkpoint (by a test)") == 1
    group = monitor.group or await monitor.tell_started(0, 2, 0)
    assert monitor.phase == "pausing"
    assert await order_of(monitor, group) == "leave"
    await monitor.tell_saved("leave")
    await monitor.tell_phase("paused")
    assert monitor.phase == "paused"
    await monitor.ask_resume()
    assert (monitor.phase, (await monitor.state())[0]) == ("waiting", "train")
    assert await order_of(monitor, await training(monitor)) == "none"


@pytest.mark.parametrize("phase", [*BUSY, "pausing", "paused"])
@story
async def test_a_stop_is_heard_in_every_phase(phase: Phase) -> None:
    monitor = monitor_of()
    await bring(monitor, phase)
    await monitor.ask_stop(WHO)
    await monitor.ask_stop(WHO)
    assert (monitor.phase, await monitor.state()) == ("stopping", ("stop", None))
    assert (await monitor.news()).lines.count("stopping at a checkpoint (by a test)") == 1
    if phase in EARLY:
        await monitor.tell_started(0, 2, 0)
    assert await order_of(monitor, monitor.group) == "leave"


@story
async def test_while_a_model_is_registered_a_stop_is_refused() -> None:
    monitor = monitor_of()
    await bring(monitor, "finishing")
    with pytest.raises(ConflictError, match="training is over"):
        await monitor.ask_stop(WHO)


@story
async def test_a_resume_on_the_way_to_a_pause_waits_for_it() -> None:
    """The workers leave all the same: the driver must not take that for the end of the run."""
    monitor = monitor_of()
    group = await training(monitor)
    await monitor.ask_pause(WHO)
    await monitor.ask_resume()
    assert await order_of(monitor, group) == "leave"
    await monitor.tell_saved("leave")
    assert await monitor.state() == ("pause", None)
    await monitor.tell_phase("paused")
    assert await monitor.state() == ("train", None)


@story
async def test_a_pause_after_such_a_resume_stands() -> None:
    monitor = monitor_of()
    await training(monitor)
    await monitor.ask_pause(WHO)
    await monitor.ask_resume()
    await monitor.ask_pause(WHO)
    await monitor.tell_phase("paused")
    assert await monitor.state() == ("pause", None)


@pytest.mark.parametrize("phase", BUSY)
@story
async def test_a_resume_of_what_is_not_paused_changes_nothing(phase: Phase) -> None:
    monitor = monitor_of()
    await bring(monitor, phase)
    await monitor.news()
    await monitor.ask_resume()
    assert (monitor.phase, await monitor.state()) == (phase, ("train", None))
    assert (await monitor.news()).lines == []


@story
async def test_an_order_to_yield_is_given_once_and_to_the_group_it_is_meant_for() -> None:
    monitor = monitor_of()
    group = await training(monitor)
    await monitor.order_yield(group - 1, 3, "asked for")
    assert await order_of(monitor, group) == "none"
    await monitor.order_yield(group, 3, "asked for")
    await monitor.order_yield(group, 4, "asked for")
    assert await order_of(monitor, group) == "yield"
    assert (await monitor.news()).lines == ["changing to 3 workers (asked for)"]
    await monitor.tell_saved("yield")
    view = await monitor.view()
    assert (view.yielded, view.ends, view.group) == (True, False, group)
    follower = await training(monitor, step=1, workers=3, computed=1)
    assert not (await monitor.view()).yielded
    assert await order_of(monitor, follower) == "none"
    assert await order_of(monitor, group) == "abort"


@story
async def test_who_waits_for_an_order_hears_it_at_once_or_that_the_group_is_gone() -> None:
    monitor = monitor_of()
    group = await training(monitor)
    waiting = asyncio.ensure_future(monitor.await_order(group))
    await asyncio.sleep(0)
    await monitor.tell_loss("worker 1 died")
    follower = await training(monitor)
    assert await asyncio.wait_for(waiting, 1) == "abort"
    waiting = asyncio.ensure_future(monitor.await_order(follower))
    await asyncio.sleep(0)
    await monitor.ask_pause(WHO)
    assert await asyncio.wait_for(waiting, 1) == "leave"


@story
async def test_a_resize_is_counted_with_the_time_until_the_next_first_step() -> None:
    clock = Clock()
    monitor = monitor_of(clock=clock)
    group = await training(monitor)
    clock.now += 10
    await monitor.tell(at(20, training_s=9.0, checkpointing_s=1.0))
    await monitor.order_yield(group, 3, "asked for")
    clock.now += 2
    await monitor.tell_saved("yield")
    assert (await monitor.status()).progress.workers == 0
    clock.now += 5
    await monitor.tell_started(20, 3, 20)
    clock.now += 1
    await monitor.tell(at(21, workers=3, training_s=0.5))
    assert (await monitor.status()).totals == Totals(
        groups=2, resizes=1, training_s=9.5, checkpointing_s=1.0, restarting_s=6.0
    )
    assert (await monitor.news()).lines[-1] == "training with 3 workers from step 20"


@story
async def test_a_loss_is_counted_with_the_steps_it_costs() -> None:
    clock = Clock()
    monitor = monitor_of(clock=clock)
    await training(monitor)
    await monitor.tell(at(30))
    await monitor.tell_loss("worker 1 died")
    assert (monitor.phase, monitor.progress.workers, monitor.progress.step) == ("starting", 0, 30)
    clock.now += 7
    await monitor.tell_started(20, 2, 31)
    await monitor.tell(at(21))
    totals = (await monitor.status()).totals
    assert (totals.restarts, totals.resizes, totals.steps_twice, totals.restarting_s) == (1, 0, 11, 7.0)
    assert (await monitor.news()).lines == [
        "lost workers: worker 1 died; going on from the last checkpoint",
        "training with 2 workers from step 20; 11 steps computed again",
    ]


@story
async def test_a_pause_is_counted_and_neither_it_nor_waiting_for_room_is_time_restarting() -> None:
    clock = Clock()
    monitor = monitor_of(clock=clock)
    await bring(monitor, "paused")
    assert (await monitor.status()).totals.pauses == 1
    clock.now += 3600
    await monitor.ask_resume()
    await monitor.tell_phase("waiting")
    clock.now += 600
    await monitor.tell_phase("starting")
    clock.now += 4
    await monitor.tell_started(1, 2, 1)
    clock.now += 1
    await monitor.tell(at(2))
    totals = (await monitor.status()).totals
    assert (totals.pauses, totals.restarts, totals.resizes, totals.restarting_s) == (1, 0, 0, 5.0)


@story
async def test_workers_lost_on_the_way_to_a_pause_are_both() -> None:
    monitor = monitor_of()
    await training(monitor)
    await monitor.ask_pause(WHO)
    await monitor.tell_loss("worker 0 died")
    assert monitor.phase == "pausing"
    assert (await monitor.news()).lines[-1] == "lost workers: worker 0 died; pausing at the last checkpoint"
    await monitor.tell_phase("paused")
    await monitor.ask_resume()
    await training(monitor, computed=1)
    totals = (await monitor.status()).totals
    assert (totals.pauses, totals.restarts, totals.steps_twice) == (1, 1, 1)


@story
async def test_a_driver_that_was_lost_shows_in_the_steps_computed_again_one_that_stopped_does_not() -> None:
    lost = monitor_of(totals=Totals(groups=1, training_s=50.0))
    await training(lost, step=20, computed=25)
    assert lost.totals == Totals(groups=2, restarts=1, steps_twice=5, training_s=50.0)
    stopped = monitor_of(totals=Totals(groups=1))
    await training(stopped, step=20, computed=20)
    assert stopped.totals == Totals(groups=2)


@story
async def test_losses_without_a_step_in_between_end_the_run() -> None:
    monitor = monitor_of()
    await training(monitor)
    await monitor.tell(at(10))
    for _ in range(MAX_LOSSES):
        await monitor.tell_loss("worker 0 died")
        await monitor.tell_started(0, 2, 10)
        await monitor.tell(at(9))
    assert monitor.failure is None
    await monitor.tell_loss("worker 0 died")
    assert isinstance(monitor.failure, TrainingError)
    assert f"{MAX_LOSSES + 1} times in a row" in str(monitor.failure)
    assert monitor.phase == "stopping"


@pytest.mark.parametrize("is_told", [True, False])
@story
async def test_a_step_further_is_a_new_start_even_if_nobody_lived_to_tell_it(is_told: bool) -> None:
    monitor = monitor_of()
    await training(monitor)
    for step in range(2, 4 * MAX_LOSSES):
        await monitor.tell_loss("worker 0 died")
        await monitor.tell_started(0, 2, step)
        if is_told:
            await monitor.tell(at(step + 1))
    assert monitor.failure is None


@story
async def test_what_workers_say_after_a_failure_is_no_loss() -> None:
    monitor = monitor_of()
    await training(monitor)
    await monitor.tell_failure(TrainingError("the loss became nan"))
    await monitor.tell_loss("worker 0: the loss became nan")
    assert (await monitor.news()).lines == []
    assert monitor.phase == "stopping"


@story
async def test_every_epoch_is_told_once_to_the_driver_alone() -> None:
    monitor = monitor_of()
    await training(monitor)
    for epoch in (1, 2, 1, 2, 3):
        await monitor.tell_epoch({"epoch": epoch, "step": 10 * epoch})
    assert (await monitor.status()).epochs == []
    assert [record["epoch"] for record in (await monitor.news()).epochs] == [1, 2, 3]
    assert (await monitor.news()).epochs == []


@story
async def test_a_restart_keeps_what_is_known_of_the_run() -> None:
    monitor = monitor_of()
    await training(monitor)
    await monitor.tell_loss("worker 0 died")
    await monitor.tell_started(0, 3, 1)
    progress = (await monitor.status()).progress
    assert (progress.step, progress.total_steps, progress.workers, progress.rows_per_s) == (0, 100, 3, 0.0)


@story
async def test_the_history_of_a_resize() -> None:
    monitor = monitor_of()
    group = await training(monitor)
    await monitor.ask_size(3, WHO)
    await monitor.order_yield(group, 3, "asked for")
    await monitor.tell_saved("yield")
    await training(monitor, step=1, workers=3, computed=1)
    events = await monitor.history()
    assert [what for what, _ in events] == ["started", "first_step", "asked", "saved", "started", "first_step"]
    assert sorted(when for _, when in events) == [when for _, when in events]


def test_a_run_folder_keeps_where_the_last_driver_left_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "digits"
    assert (Last.read(folder), Totals.read(folder)) == (None, Totals())
    News(at(30), totals=Totals(resizes=2)).write(folder)
    assert Last.read(folder) == Last(at(30), Totals(resizes=2))
    # The next driver knows of no step yet; what it counts is kept all the same.
    News(Progress(), totals=Totals(resizes=2, pauses=1)).write(folder)
    assert Last.read(folder) == Last(at(30), Totals(resizes=2, pauses=1))
    assert Totals.read(folder) == Totals(resizes=2, pauses=1)
    (folder / STATUS).write_text("{")
    assert Last.read(folder) is None


class AnyHistory(RuleBasedStateMachine):
    """A driver, its controller and its workers, as trainer.py, resize.py and loop.py have them, in any order of events.

    `step` is what the living group has computed, `kept` the newest checkpoint, `computed` what the counter file says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.monitor = monitor_of()
        self.group = self.step = self.kept = self.computed = 0
        self.lives = self.waits = False
        self.driver = "starting"
        self.leaving = ""
        self.losses = 0
        self.expected = {"resizes": 0, "restarts": 0, "pauses": 0, "steps_twice": 0, "groups": 0}

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    def teardown(self) -> None:
        self.runner.close()

    def try_to(self, ask: Coroutine[Any, Any, None]) -> None:
        """An ask that may come too late."""
        action, failure = self.do(self.monitor.state())
        try:
            self.do(ask)
        except ConflictError:
            assert action == "stop" or failure

    @rule(workers=st.integers(1, 4))
    def ask_size(self, workers: int) -> None:
        self.try_to(self.monitor.ask_size(workers, WHO))

    @rule()
    def ask_pause(self) -> None:
        self.try_to(self.monitor.ask_pause(WHO))

    @rule()
    def ask_resume(self) -> None:
        self.try_to(self.monitor.ask_resume())

    @rule()
    @precondition(lambda self: self.computed > 3)
    def ask_stop(self) -> None:
        self.try_to(self.monitor.ask_stop(WHO))

    @rule(size=st.integers(1, 4))
    @precondition(lambda self: self.lives)
    def policy_wants_another_size(self, size: int) -> None:
        self.do(self.monitor.order_yield(self.group, size, WHO))

    @rule(told=st.booleans())
    @precondition(lambda self: self.lives and not self.waits)
    def workers_step(self, told: bool) -> None:
        order = self.do(order_of(self.monitor, self.group))
        self.step += 1
        self.computed = self.step
        if told:
            self.do(self.monitor.tell(at(self.step)))
        if order == "abort":
            self.lives = False
            self.attempt_is_over()
        elif order != "none":
            self.kept = self.step
            self.do(self.monitor.tell_saved(order))
            self.waits = order == "yield"
            self.leaving = "resize" if order == "yield" else "pause"
            if order == "leave":
                self.lives = False
                self.attempt_is_over()

    @rule()
    @precondition(lambda self: self.lives and not self.waits)
    def workers_checkpoint(self) -> None:
        self.kept = self.step

    @rule()
    @precondition(lambda self: self.lives)
    def workers_die(self) -> None:
        self.lives = self.waits = False
        self.leaving = "loss"
        self.losses += 1
        self.do(self.monitor.tell_loss("worker 0 died"))

    @rule(replaces=st.booleans())
    @precondition(lambda self: self.driver == "attempt" and (self.waits or not self.lives))
    def controller_starts_a_group(self, replaces: bool) -> None:
        """Of a run that is to end it starts none, but it may replace one that waits for that."""
        view = self.do(self.monitor.view())
        if view.ends and not (self.waits and replaces):
            self.lives = self.waits = False
            self.attempt_is_over()
            return
        again = self.computed - self.kept
        self.group = self.do(self.monitor.tell_started(self.kept, view.wanted, self.computed))
        self.expected["groups"] += 1
        self.expected["steps_twice"] += again
        self.expected["resizes"] += self.leaving == "resize"
        self.expected["restarts"] += self.leaving == "loss"
        self.step = self.computed = self.kept
        self.lives, self.waits, self.leaving = True, False, ""

    @rule()
    @precondition(lambda self: self.driver in ("starting", "paused"))
    def driver_goes_on(self) -> None:
        if self.driver == "paused":
            action, _ = self.do(self.monitor.state())
            if action != "train":
                self.driver = "over" if action == "stop" else "paused"
                return
        self.do(self.monitor.tell_phase("waiting"))
        self.do(self.monitor.tell_phase("starting"))
        self.driver = "attempt"

    def attempt_is_over(self) -> None:
        """As the driver takes it: workers that left without it being asked would be an error of the run."""
        action, failure = self.do(self.monitor.state())
        assert failure or action in ("pause", "stop")
        if failure or action == "stop":
            self.driver = "over"
            return
        self.do(self.monitor.tell_phase("paused"))
        self.expected["pauses"] += 1
        self.driver = "paused"

    @invariant()
    def what_is_told_is_so(self) -> None:
        news = self.do(self.monitor.status())
        assert self.driver == "over" or self.do(self.monitor.view()).yielded == self.waits
        counted = {name: getattr(news.totals, name) for name in self.expected}
        assert counted == self.expected
        assert not self.monitor.failure or self.losses > MAX_LOSSES
        if news.phase == "paused":
            assert self.driver == "paused"
        if news.phase in ("training", "yielding"):
            assert self.lives
            assert news.progress.step <= self.step


AnyHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyHistory = AnyHistory.TestCase


async def standing(monitor: Monitor) -> str:
    return (await monitor.claim()).standing


@story
async def test_a_run_lends_what_it_would_have_if_nobody_else_needed_it() -> None:
    monitor = monitor_of()
    assert not (await monitor.view()).lends
    await monitor.allot(2, "serving")
    assert (await monitor.view()).lends
    await monitor.ask_size(2, WHO)
    assert not (await monitor.view()).lends


@story
async def test_a_run_that_lost_its_workers_and_is_given_none_starts_none() -> None:
    monitor = monitor_of()
    await monitor.allot(3, "starts")
    await monitor.tell_phase("starting")
    await monitor.tell_started(0, 3, 0)
    await monitor.tell_loss("a node")
    await monitor.tell_phase("waiting")
    await monitor.allot(0, "waits")
    assert (await monitor.view()).wanted == 0
    await monitor.allot(2, "starts")
    assert (await monitor.view()).wanted == 2


@story
async def test_a_run_that_trains_though_it_was_given_nothing_gives_it_back() -> None:
    monitor = monitor_of()
    await monitor.allot(0, "waits")
    await monitor.tell_phase("starting")
    await monitor.tell_started(0, 3, 0)
    await monitor.allot(0, "waits")
    assert (await monitor.state())[0] == "pause"
    assert await monitor.await_order(1) == "leave"


@story
async def test_what_was_given_does_not_outlast_a_pause() -> None:
    monitor = monitor_of()
    await monitor.allot(3, "starts")
    await monitor.tell_phase("waiting", anew=True)
    assert await monitor.allotment() is None


@story
async def test_a_group_that_is_replaced_holds_its_devices_a_moment_longer() -> None:
    clock = Clock()
    monitor = monitor_of(clock=clock)
    await monitor.tell_nodes(("a", "b"))
    await monitor.tell_nodes(())
    assert (await monitor.claim()).nodes == ("a", "b")
    clock.now += GIVEN_BACK_S
    assert (await monitor.claim()).nodes == ()


@story
async def test_the_arbiter_gives_a_run_that_waits_its_size() -> None:
    monitor = monitor_of()
    assert await standing(monitor) == "away"
    await monitor.tell_phase("waiting", anew=True)
    assert await standing(monitor) == "queued"
    assert await monitor.allotment() is None
    await monitor.allot(3, "starts")
    assert await monitor.allotment() == 3
    assert (await monitor.view()).wanted == 3
    await monitor.tell_phase("starting")
    assert await standing(monitor) == "changing"
    await monitor.tell_started(0, 3, 0)
    assert await standing(monitor) == "training"


@story
async def test_a_run_that_was_given_another_size_is_changing_until_it_has_it_or_cannot() -> None:
    clock = Clock()
    monitor = monitor_of(clock=clock)
    await monitor.allot(3, "starts")
    await monitor.tell_started(0, 3, 0)
    asks = (await monitor.view()).asks
    await monitor.allot(2, "gives 1")
    view = await monitor.view()
    assert (view.wanted, view.asks) == (2, asks + 1)
    assert await standing(monitor) == "changing"
    clock.now += HEARD_S + 1
    assert await standing(monitor) == "training"
    await monitor.allot(2, "gives 1")
    assert (await monitor.view()).asks == view.asks


@story
async def test_what_a_person_asked_for_bounds_what_the_arbiter_gives() -> None:
    monitor = monitor_of()
    await monitor.ask_size(2, WHO)
    assert (await monitor.claim()).high == 2
    await monitor.allot(4, "free")
    assert (await monitor.view()).wanted == 2
    await monitor.allot(1, "gives 1")
    assert (await monitor.view()).wanted == 1


@story
async def test_a_run_gives_everything_back_waits_and_goes_on_when_it_is_given_some() -> None:
    monitor = monitor_of()
    await monitor.allot(2, "starts")
    await monitor.tell_started(0, 2, 0)
    await monitor.allot(0, "pauses for app/model")
    assert await order_of(monitor, 1) == "leave"
    assert (monitor.phase, await standing(monitor)) == ("pausing", "changing")
    await monitor.tell_saved("leave")
    await monitor.tell_phase("paused")
    await monitor.tell_queue("1. in the queue")
    assert (monitor.phase, await standing(monitor)) == ("waiting", "queued")
    assert (await monitor.status()).note == "1. in the queue"
    await monitor.ask_resume()
    assert (await monitor.state())[0] == "pause"
    await monitor.allot(2, "starts")
    assert (await monitor.state())[0] == "train"
    assert (monitor.phase, (await monitor.status()).note) == ("waiting", "1. in the queue")


@story
async def test_a_run_that_is_given_some_while_it_still_gives_back_goes_on_at_once() -> None:
    monitor = monitor_of()
    await monitor.tell_started(0, 2, 0)
    await monitor.allot(0, "pauses")
    await monitor.allot(1, "starts")
    await monitor.tell_saved("leave")
    await monitor.tell_phase("paused")
    assert (await monitor.state())[0] == "train"


@story
async def test_a_run_that_a_person_pauses_is_not_the_arbiters_any_more() -> None:
    monitor = monitor_of()
    await monitor.tell_started(0, 2, 0)
    await monitor.allot(0, "pauses")
    await monitor.ask_pause(WHO)
    await monitor.tell_saved("leave")
    await monitor.tell_phase("paused")
    assert (monitor.phase, await standing(monitor)) == ("paused", "away")
    await monitor.allot(2, "starts")
    assert (await monitor.state())[0] == "pause"
    await monitor.ask_resume()
    assert (await monitor.state())[0] == "train"


@story
async def test_a_run_that_ends_is_told_nothing_more() -> None:
    monitor = monitor_of()
    await monitor.tell_started(0, 2, 0)
    await monitor.ask_stop(WHO)
    assert await standing(monitor) == "away"
    await monitor.allot(0, "pauses")
    assert monitor.action == "stop"


@story
async def test_a_claim_tells_where_the_workers_are_and_what_a_resize_costs() -> None:
    clock = Clock()
    monitor = monitor_of(clock=clock)
    assert (await monitor.claim()).resize_s == RESIZE_S
    await monitor.tell_started(0, 2, 0)
    await monitor.tell(at(1))
    await monitor.tell_nodes(("a", "b"))
    clock.now += 7
    claim = await monitor.claim()
    assert (claim.nodes, claim.changed_s) == (("a", "b"), 7)
    await monitor.order_yield(1, 1, WHO)
    await monitor.tell_saved("yield")
    clock.now += 3
    await monitor.tell_started(1, 1, 1)
    await monitor.tell(at(2, workers=1))
    claim = await monitor.claim()
    assert (claim.changed_s, claim.resize_s) == (0, 3)
    await monitor.tell_phase("waiting")
    assert (await monitor.claim()).nodes == ()
