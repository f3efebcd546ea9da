"""The batcher on a real event loop, with a model that records what it was asked."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from tidegate.errors import RequestError, UnavailableError
from tidegate.serving.batching import RECENT_PASSES, SLOW_S, Batcher, Rows

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
        await batcher.close()

    asyncio.run(main())
