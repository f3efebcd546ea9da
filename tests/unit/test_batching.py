"""The batcher on a real event loop, with a model that records what it was asked."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tidegate.errors import RequestError, UnavailableError
from tidegate.serving import batching
from tidegate.serving.batching import (
    BACK_OFF,
    RECENT_PASSES,
    SLOW_S,
    STEP_ROWS,
    Batcher,
    Rows,
    Ticket,
)

WAIT_S = 10.0


class Doubling:
    """Answers 2x, refuses negative values, and computes only while the gate is open."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.threads: set[int] = set()
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def predict(self, inputs: Rows) -> Rows:
        self.batches.append(inputs["x"].reshape(len(inputs["x"]), -1)[:, 0].tolist())
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        if (inputs["x"].astype(float) < 0).any():
            raise RequestError("a negative value")
        return {"y": inputs["x"].astype(float) * 2}


def rows(*values: float) -> Rows:
    return {"x": np.array(values)}


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), WAIT_S)

    asyncio.run(bounded())


async def ask(batcher: Batcher, inputs: Rows) -> Rows:
    """What the batcher answers; cancelling this cancels the request."""
    answer: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()

    def done(outcome: Rows | Exception) -> None:
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    ticket = batcher.submit(inputs, done)
    try:
        return await answer
    except asyncio.CancelledError:
        batcher.cancel(ticket)
        raise


async def busy(model: Doubling, batcher: Batcher) -> asyncio.Task[Rows]:
    """Makes the model compute on one request, and returns when it does."""
    model.gate.clear()
    first = asyncio.create_task(ask(batcher, rows(0)))
    assert await asyncio.to_thread(model.entered.acquire, timeout=WAIT_S)
    return first


async def submit_all(batcher: Batcher, *requests: Rows) -> list[asyncio.Task[Rows]]:
    tasks = [asyncio.create_task(ask(batcher, request)) for request in requests]
    await asyncio.sleep(0)
    return tasks


def values(outcome: Any) -> list[float]:
    return [float(value) for value in outcome["y"].reshape(-1)]


def test_an_idle_model_answers_at_once() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 4)
        assert values(await ask(batcher, rows(1, 2))) == [2, 4]
        assert values(await ask(batcher, rows(3))) == [6]
        await batcher.close()
        assert model.batches == [[1, 2], [3]]
        assert threading.get_ident() not in model.threads

    run(test)


def test_what_arrives_meanwhile_is_answered_together_in_order_and_split() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 4)
        first = await busy(model, batcher)
        tasks = await submit_all(batcher, rows(1), rows(2, 3), rows(4), rows(5, 6), rows(7))
        model.gate.set()
        assert [values(await task) for task in (first, *tasks)] == [[0], [2], [4, 6], [8], [10, 12], [14]]
        await batcher.close()
        assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]

    run(test)


def test_a_request_that_does_not_fit_waits_and_is_not_overtaken() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 3)
        first = await busy(model, batcher)
        tasks = await submit_all(batcher, rows(1, 2), rows(3, 4), rows(5))
        model.gate.set()
        await asyncio.gather(first, *tasks)
        await batcher.close()
        assert model.batches == [[0], [1, 2], [3, 4, 5]]

    run(test)


def test_a_request_larger_than_a_pass_takes_several() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 3)
        assert values(await ask(batcher, rows(*range(8)))) == [2 * value for value in range(8)]
        await batcher.close()
        assert model.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]

    run(test)


def test_requests_of_other_shapes_or_types_go_by_themselves() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 9)
        first = await busy(model, batcher)
        wide, integer = {"x": np.array([[1.0, 2.0]])}, {"x": np.array([3])}
        text = {"x": np.array(["4"], dtype=object)}
        tasks = await submit_all(batcher, wide, integer, text, rows(5), rows(6))
        model.gate.set()
        await asyncio.gather(first, *tasks)
        assert values(await tasks[0]) == [2, 4]
        await batcher.close()
        assert model.batches == [[0], [1], [3], ["4"], [5, 6]]

    run(test)


def test_requests_of_any_length_share_a_pass_as_long_as_its_longest() -> None:
    passes: list[NDArray[np.generic]] = []

    def predict(inputs: Rows) -> Rows:
        passes.append(inputs["x"])
        return {"y": np.nansum(inputs["x"], axis=(1, 2))}

    async def test() -> None:
        batcher = Batcher(predict, 8, any_length=["x"])
        sizes = [(1, 2, 2), (2, 5, 2), (1, 1, 2), (1, 2, 3)]
        tasks = await submit_all(batcher, *({"x": np.ones(size)} for size in sizes))
        assert [(await task)["y"].tolist() for task in tasks] == [[4.0], [10.0, 10.0], [2.0], [6.0]]
        await batcher.close()
        assert [array.shape for array in passes] == [(4, 5, 2), (1, 2, 3)]
        assert np.isnan(passes[0][0, 2:]).all()
        assert not np.isnan(passes[0][1:3]).any()

    run(test)


def test_one_bad_request_does_not_fail_the_others() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 4)
        first = await busy(model, batcher)
        tasks = await submit_all(batcher, rows(1), rows(-1), rows(2))
        model.gate.set()
        await first
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert values(outcomes[0]) == [2]
        assert isinstance(outcomes[1], RequestError)
        assert values(outcomes[2]) == [4]
        await batcher.close()
        assert model.batches == [[0], [1, -1, 2], [1], [-1], [2]]

    run(test)


def test_it_works_on_after_an_error() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 4)
        with pytest.raises(RequestError, match="negative"):
            await ask(batcher, rows(-1))
        assert values(await ask(batcher, rows(1))) == [2]
        await batcher.close()

    run(test)


def test_a_cancelled_request_leaves_the_queue() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 4, max_waiting=2)
        first = await busy(model, batcher)
        tasks = await submit_all(batcher, rows(1), rows(2))
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        (late,) = await submit_all(batcher, rows(3))
        model.gate.set()
        assert [values(await task) for task in (first, tasks[1], late)] == [[0], [4], [6]]
        await batcher.close()
        assert model.batches == [[0], [2, 3]]

    run(test)


def test_cancelling_a_request_that_computes_harms_nobody() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 4)
        first = await busy(model, batcher)
        (second,) = await submit_all(batcher, rows(1))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        model.gate.set()
        assert values(await second) == [2]
        await batcher.close()

    run(test)


def test_who_cancelled_while_it_was_computed_is_told_nothing() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 4)
        model.gate.clear()
        answers: list[Rows | Exception] = []
        ticket = batcher.submit(rows(1), answers.append)
        assert await asyncio.to_thread(model.entered.acquire, timeout=WAIT_S)
        batcher.cancel(ticket)
        model.gate.set()
        assert values(await ask(batcher, rows(2))) == [4]
        await batcher.close()
        assert answers == []

    run(test)


def test_a_full_queue_refuses() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 4, max_waiting=2)
        first = await busy(model, batcher)
        tasks = await submit_all(batcher, rows(1), rows(2))
        with pytest.raises(UnavailableError, match="2 requests are waiting"):
            await ask(batcher, rows(3))
        model.gate.set()
        assert [values(await task) for task in (first, *tasks)] == [[0], [2], [4]]
        assert values(await ask(batcher, rows(3))) == [6]
        await batcher.close()

    run(test)


@pytest.mark.parametrize(("max_wait_s", "is_refused"), [(0.01, True), (1000.0, False)])
def test_a_queue_that_would_take_too_long_refuses(max_wait_s: float, is_refused: bool) -> None:
    """The model takes 20 ms for each row."""

    async def test() -> None:
        model = Doubling()

        def slow(inputs: Rows) -> Rows:
            time.sleep(0.02)
            return model.predict(inputs)

        batcher = Batcher(slow, 1, max_wait_s=max_wait_s)
        assert values(await ask(batcher, rows(1))) == [2]
        first = await busy(model, batcher)
        (second,) = await submit_all(batcher, rows(3))
        if is_refused:
            with pytest.raises(UnavailableError, match="1 requests are waiting"):
                await ask(batcher, rows(4))
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
        (third,) = await submit_all(batcher, rows(5))
        model.gate.set()
        assert [values(await task) for task in (first, third)] == [[0], [10]]
        await batcher.close()

    run(test)


def test_closing_answers_what_waits() -> None:
    async def test() -> None:
        model = Doubling()
        batcher = Batcher(model.predict, 1)
        first = await busy(model, batcher)
        tasks = await submit_all(batcher, rows(1), rows(2))
        closing = asyncio.create_task(batcher.close())
        model.gate.set()
        await closing
        assert [values(await task) for task in (first, *tasks)] == [[0], [2], [4]]

    run(test)


def test_a_model_that_loses_rows_is_an_error_not_a_wrong_answer() -> None:
    async def test() -> None:
        batcher = Batcher(lambda inputs: {"y": inputs["x"][:-1]}, 4)
        with pytest.raises(RuntimeError, match="1 rows of 'y' for 2 rows"):
            await ask(batcher, rows(1, 2))
        await batcher.close()

    run(test)


def test_a_quick_model_is_asked_on_the_loop_and_a_slow_one_is_not() -> None:
    threads: list[str] = []
    pause = 0.0

    def predict(inputs: Rows) -> Rows:
        threads.append(threading.current_thread().name)
        time.sleep(pause)
        return {"y": inputs["x"]}

    async def ask_often(batcher: Batcher, times: int) -> None:
        for number in range(times):
            answer = await ask(batcher, {"x": np.asarray([number])})
            assert answer["y"].tolist() == [number]

    async def main() -> None:
        nonlocal pause
        batcher = Batcher(predict, max_rows=4)
        await ask_often(batcher, 3 * RECENT_PASSES)
        assert "MainThread" in threads
        pause = 2 * SLOW_S
        await ask_often(batcher, 2 * RECENT_PASSES)
        assert threads[-1].startswith("predict"), "it has become slow, and went back to its thread"
        pause = 0.0
        await ask_often(batcher, 3 * RECENT_PASSES)
        assert threads[-1] == "MainThread"
        await ask(batcher, {"x": np.asarray(["a text"], object)})
        assert threads[-1].startswith("predict"), "how long a text or an image takes is not known"
        await batcher.close()

    asyncio.run(main())


class Timed:
    """A model whose passes take as long as the test says, on a clock of its own: nothing waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, row_s: float, pass_s: float = 0.0) -> None:
        self.row_s, self.pass_s = row_s, pass_s
        self.now = 0.0
        self.passes: list[int] = []
        self.told: list[tuple[int, float]] = []
        monkeypatch.setattr(batching, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def predict(self, inputs: Rows) -> Rows:
        self.passes.append(len(inputs["x"]))
        self.now += self.pass_s + self.row_s * len(inputs["x"])
        return {"y": inputs["x"] * 2}

    def batcher(self, max_rows: int, target_s: float | None, **options: Any) -> Batcher:
        options = {"max_waiting": 10_000, **options}
        return Batcher(self.predict, max_rows, target_s=target_s, on_pass=self.tell, **options)

    def tell(self, num_rows: int, seconds: float) -> None:
        self.told.append((num_rows, seconds))


async def ask_single_rows(batcher: Batcher, times: int) -> None:
    """All at once, so that passes are as full as they may be."""
    answers = await asyncio.gather(*(ask(batcher, rows(number)) for number in range(times)))
    assert [values(answer) for answer in answers] == [[2 * number] for number in range(times)]


def test_a_pass_grows_to_what_half_of_the_target_allows_and_stays_about_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        model = Timed(monkeypatch, row_s=0.001)
        batcher = model.batcher(64, 0.1)
        # Half of the target is what 50 rows take.
        await ask_single_rows(batcher, 3000)
        await batcher.close()
        assert model.passes[0] == 64
        settled = model.passes[10:-1]
        assert max(settled) <= 50 + STEP_ROWS
        assert min(settled) >= BACK_OFF * 50 - 1
        # It tries more again and again.
        assert max(settled) >= 50
        steps = {after - before for before, after in itertools.pairwise(settled)}
        assert {step for step in steps if step > 0} == {STEP_ROWS}

    run(test)


def test_a_model_that_has_become_faster_gets_fuller_passes_up_to_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        model = Timed(monkeypatch, row_s=0.01)
        batcher = model.batcher(32, 0.1)
        await ask_single_rows(batcher, 200)
        assert batcher.pass_rows <= 5 + STEP_ROWS
        model.row_s = 0.0001
        await ask_single_rows(batcher, 2000)
        await batcher.close()
        assert batcher.pass_rows == max(model.passes) == 32

    run(test)


def test_a_row_that_takes_longer_than_the_target_is_no_reason_for_passes_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        # Ten rows take less than twice what one does.
        model = Timed(monkeypatch, row_s=0.01, pass_s=1.0)
        batcher = model.batcher(10, 0.1)
        await ask_single_rows(batcher, 1)
        await ask_single_rows(batcher, 200)
        await batcher.close()
        assert batcher.pass_rows == 10
        assert set(model.passes[1:]) == {10}

    run(test)


def test_without_a_target_passes_are_as_full_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        model = Timed(monkeypatch, row_s=100.0)
        batcher = model.batcher(8, None)
        await ask_single_rows(batcher, 40)
        await batcher.close()
        assert model.passes == [8] * 5

    run(test)


def test_one_large_request_does_not_change_what_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        model = Timed(monkeypatch, row_s=0.01)
        batcher = model.batcher(32, 0.1)
        await ask_single_rows(batcher, 200)
        learned = batcher.pass_rows
        assert values(await ask(batcher, rows(*range(32)))) == [2 * number for number in range(32)]
        await batcher.close()
        assert model.passes[-1] == 32
        assert batcher.pass_rows == learned

    run(test)


def test_a_queue_is_bounded_by_the_time_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        model = Timed(monkeypatch, row_s=1.0)
        batcher = model.batcher(2, None, max_wait_s=9.5)
        # Nothing is known of a model that has not been asked: its queue is bounded by its requests alone.
        await ask_single_rows(batcher, 40)
        # A pass takes two seconds for two rows.
        answers: list[Rows | Exception] = []
        assert len(fill(batcher, answers.append)) == 10
        while len(answers) < 10:
            await asyncio.sleep(0)
        # As soon as they are answered, as many are taken again.
        assert len(fill(batcher)) == 10
        await batcher.close()
        assert model.passes == [2] * 30

    run(test)


def fill(batcher: Batcher, done: Callable[[Rows | Exception], None] = lambda _: None) -> list[Ticket]:
    """Requests of one row until one is refused."""
    tickets: list[Ticket] = []
    with pytest.raises(UnavailableError, match="are waiting already"):
        submit_for_ever(batcher, tickets, done)
    return tickets


def submit_for_ever(batcher: Batcher, tickets: list[Ticket], done: Callable[[Rows | Exception], None]) -> None:
    while True:
        tickets.append(batcher.submit(rows(1), done))


def test_a_pass_is_told_of_and_its_time_is_shared_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        model = Timed(monkeypatch, row_s=0.25)
        batcher = model.batcher(8, None)
        answers: list[Rows | Exception] = []
        model.now = 5.0
        tickets = [batcher.submit(rows(*range(size)), answers.append) for size in (1, 3, 2, 4)]
        await batcher.close()
        assert len(answers) == 4
        assert model.told == [(6, 1.5), (4, 1.0)]
        assert [ticket.share_s for ticket in tickets] == [0.25, 0.75, 0.5, 1.0]
        assert [ticket.arrived for ticket in tickets] == [5.0] * 4
        assert [ticket.started for ticket in tickets] == [5.0, 5.0, 5.0, 6.5]

    run(test)


def test_what_is_cancelled_counts_no_longer_among_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        model = Timed(monkeypatch, row_s=1.0)
        batcher = model.batcher(1, None, max_wait_s=4.5)
        await ask_single_rows(batcher, 3)
        answers: list[Rows | Exception] = []
        first = fill(batcher, answers.append)
        for ticket in first:
            batcher.cancel(ticket)
            # Once is enough.
            batcher.cancel(ticket)
        assert batcher.num_waiting == 0
        second = fill(batcher, answers.append)
        assert len(second) == len(first) == 5
        await batcher.close()
        assert len(answers) == 5
        assert model.passes == [1] * 8

    run(test)
