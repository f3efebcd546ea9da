"""Natural batching: requests that arrive while the model computes are answered together in the next pass.

No timer and no target size: an idle model answers at once, a busy one gets fuller batches by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tidegate.errors import UnavailableError

Rows = dict[str, NDArray[np.generic]]
"""Named arrays whose first axis is rows, all with the same number of them."""

Predict = Callable[[Rows], Rows]

MAX_WAITING = 256
QUICK_S = 1e-3
"""A model that answers within this is asked on the event loop itself: handing over to a thread would cost as much."""
SLOW_S = 20 * QUICK_S
RECENT_PASSES = 8


@dataclass(frozen=True, eq=False)
class _Request:
    inputs: Rows
    num_rows: int
    kind: tuple[tuple[str, object, tuple[int, ...]], ...]
    answer: asyncio.Future[Rows]


class Batcher:
    """Answers concurrent requests with as few calls of `predict` as natural batching gives.

    `predict` never runs twice at once. It runs in one thread of its own, so that a slow model does not block the event
    loop; once it has shown to be quick (see QUICK_S) it runs on the loop. A batcher belongs to one event loop; `submit`
    is called from that loop only.
    """

    def __init__(self, predict: Predict, max_rows: int, *, max_waiting: int = MAX_WAITING) -> None:
        self._predict = predict
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._waiting: deque[_Request] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._runner: asyncio.Task[None] | None = None
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT_PASSES)

    async def submit(self, inputs: Rows) -> Rows:
        """The model's outputs for `inputs`, row by row in their order.

        Raises `UnavailableError` when the queue is full, and whatever `predict` raises for this request.
        """
        if len(self._waiting) >= self._max_waiting:
            raise UnavailableError(f"{self._max_waiting} requests are waiting already", remedy="try again later")
        loop = asyncio.get_running_loop()
        request = _Request(inputs, _num_rows(inputs), _kind(inputs), loop.create_future())
        self._waiting.append(request)
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        try:
            return await request.answer
        except asyncio.CancelledError:
            if request in self._waiting:
                self._waiting.remove(request)
            raise

    async def close(self) -> None:
        """Answers what is waiting, then frees the thread. No `submit` afterwards."""
        while self._runner is not None:
            await asyncio.wait([self._runner])
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        try:
            while self._waiting:
                if self._is_quick(1):
                    # Requests that have arrived by now are read first and join the batch.
                    await asyncio.sleep(0)
                batch = self._take()
                if not batch:
                    continue  # whoever asked has gone meanwhile
                outcomes = await self._answers([request.inputs for request in batch])
                for request, outcome in zip(batch, outcomes, strict=True):
                    _resolve(request.answer, outcome)
        finally:
            self._runner = None

    def _is_quick(self, num_rows: int) -> bool:
        """Whether recent passes say that so many rows are answered at once: at most twice what was quick before."""
        quick = [rows for rows, seconds in self._recent if seconds < QUICK_S]
        return len(self._recent) == RECENT_PASSES and bool(quick) and num_rows <= 2 * max(quick)

    async def _answers(self, requests: list[Rows]) -> list[Rows | Exception]:
        if self._is_quick(sum(map(_num_rows, requests))):
            return self._timed(requests)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, requests)

    def _timed(self, requests: list[Rows]) -> list[Rows | Exception]:
        started = time.perf_counter()
        outcomes = self._compute(requests)
        seconds = time.perf_counter() - started
        if seconds > SLOW_S:
            # Not only more rows make a pass slow (longer texts do): what was quick has to show it anew, in the thread.
            self._recent.clear()
        self._recent.append((sum(map(_num_rows, requests)), seconds))
        return outcomes

    def _take(self) -> list[_Request]:
        """The next requests in order of arrival: whole ones, alike in types and inner shapes, within `max_rows`."""
        batch: list[_Request] = []
        num_rows = 0
        while self._waiting:
            request = self._waiting[0]
            if batch and (num_rows + request.num_rows > self._max_rows or request.kind != batch[0].kind):
                break
            batch.append(self._waiting.popleft())
            num_rows += request.num_rows
        return batch

    def _compute(self, requests: list[Rows]) -> list[Rows | Exception]:
        try:
            return list(_split(self._passes(_concatenate(requests)), [_num_rows(inputs) for inputs in requests]))
        except Exception as error:  # noqa: BLE001 - handed to the request that caused it
            if len(requests) == 1:
                return [error]
        # One request's fault must not fail the others: each is asked again by itself.
        return [outcome for inputs in requests for outcome in self._compute([inputs])]

    def _passes(self, inputs: Rows) -> Rows:
        """`predict` on at most `max_rows` rows at a time."""
        num_rows = _num_rows(inputs)
        if num_rows <= self._max_rows:
            return _checked(self._predict(inputs), num_rows)
        starts = range(0, num_rows, self._max_rows)
        return _concatenate([self._passes(_slice(inputs, start, start + self._max_rows)) for start in starts])


def _resolve(answer: asyncio.Future[Rows], outcome: Rows | Exception) -> None:
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _num_rows(arrays: Rows) -> int:
    return len(next(iter(arrays.values())))


def _kind(inputs: Rows) -> tuple[tuple[str, object, tuple[int, ...]], ...]:
    return tuple((name, array.dtype, array.shape[1:]) for name, array in inputs.items())


def _slice(arrays: Rows, start: int, stop: int) -> Rows:
    return {name: array[start:stop] for name, array in arrays.items()}


def _concatenate(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _split(outputs: Rows, sizes: list[int]) -> list[Rows]:
    ends = np.cumsum(sizes).tolist()
    return [_slice(outputs, end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _checked(outputs: Rows, num_rows: int) -> Rows:
    # A model that drops or adds rows would hand one request another's answer.
    for name, array in outputs.items():
        if len(array) != num_rows:
            raise RuntimeError(f"the model answered {len(array)} rows of {name!r} for {num_rows} rows")
    return outputs
