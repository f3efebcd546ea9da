"""Natural batching: requests that arrive while the model computes are answered together in the next pass.

No timer: an idle model answers at once, a busy one gets fuller batches by itself. How full they may get is learned: a
pass takes at most half of the latency target, for a request waits for the pass before its own. The rows of a pass grow
by a step while passes keep within that and shrink by a factor when one does not (additive increase, multiplicative
decrease: Crankshaw et al., "Clipper", NSDI 2017, section 4.3). Where a single row takes longer than that, small passes
would gain nothing: there a pass may take twice as long as a row.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tidegate.errors import UnavailableError

Rows = Mapping[str, NDArray[np.generic]]
"""Named arrays whose first axis is rows, all with the same number of them."""

Predict = Callable[[Rows], Rows]
Kind = tuple[tuple[str, object, tuple[int, ...]], ...]
"""The name, type and inner shape of each input: requests that are alike in these share a pass."""

Done = Callable[["Rows | Exception"], None]
OnPass = Callable[[int, float], None]
"""Told of each pass: its rows and how many seconds it took."""

QUICK_S = 1e-3
"""A model that answers within this is asked on the event loop itself: handing over to a thread would cost as much.

Of numbers only: how long texts, images and sounds take is not told by their rows.
"""
SLOW_S = 20 * QUICK_S
RECENT_PASSES = 8
STEP_ROWS = 2
BACK_OFF = 0.8


@dataclass(eq=False, slots=True)
class Ticket:
    """A request's place in the queue."""

    inputs: Rows
    num_rows: int
    kind: Kind
    done: Done
    arrived: float
    started: float = 0.0
    """When its pass began; both are `time.perf_counter()`."""
    share_s: float = 0.0
    """Its part of the time that its pass took, by rows."""
    is_cancelled: bool = field(default=False, init=False)


class Batcher:
    """Answers concurrent requests with as few calls of `predict` as natural batching gives.

    Inputs named in `any_length` may have another second axis in each request; shorter ones are filled up with NaN.

    `predict` never runs twice at once. It runs in one thread of its own, so that a slow model does not block the event
    loop; once it has shown to be quick (see QUICK_S) it runs on the loop. A batcher belongs to one event loop; all of
    its methods are called from that loop, and so is `done`.
    """

    def __init__(
        self,
        predict: Predict,
        max_rows: int,
        *,
        max_waiting: int = 256,
        max_wait_s: float = math.inf,
        target_s: float | None = None,
        on_pass: OnPass | None = None,
        any_length: Collection[str] = (),
    ) -> None:
        self._predict = predict
        self._any_length = frozenset(any_length)
        self.max_rows = max_rows
        self._max_waiting, self._max_wait_s = max_waiting, max_wait_s
        self._target_s = target_s
        self._single_s = 0.0
        self._on_pass = on_pass
        self._rows: float = max_rows
        self._waiting: deque[Ticket] = deque()
        self._rows_waiting = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._loop = asyncio.get_running_loop()
        self._is_running = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT_PASSES)

    @property
    def num_waiting(self) -> int:
        """Requests that no pass has taken yet."""
        return len(self._waiting)

    @property
    def pass_rows(self) -> int:
        """The rows that a pass takes at most, as learned."""
        return max(1, int(self._rows))

    def submit(self, inputs: Rows, done: Done) -> Ticket:
        """Has `done` called with the model's outputs for `inputs`, row by row in their order, or what it raised.

        Raises `UnavailableError` when the queue is full, by its requests or by the time that they will take.
        """
        if len(self._waiting) >= self._max_waiting or self._is_behind():
            raise UnavailableError(f"{len(self._waiting)} requests are waiting already", remedy="try again later")
        ticket = Ticket(inputs, _num_rows(inputs), self._kind(inputs), done, time.perf_counter())
        self._waiting.append(ticket)
        self._rows_waiting += ticket.num_rows
        if not self._is_running:
            self._is_running = True
            self._idle.clear()
            # Not at once: what has arrived by now is read first and joins the batch.
            self._loop.call_soon(self._next)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for this answer any more: `done` is not called. A pass that runs is not stopped."""
        ticket.is_cancelled = True
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._rows_waiting -= ticket.num_rows

    async def close(self) -> None:
        """Answers what is waiting, then frees the thread. No `submit` afterwards."""
        await self._idle.wait()
        self._thread.shutdown(wait=False)

    def _next(self) -> None:
        batch, rows = self._take()
        if not batch:
            self._rest()
            return
        requests = [ticket.inputs for ticket in batch]
        if self._is_quick(batch[0], rows):
            self._finish(batch, rows, self._timed(requests))
        else:
            future = self._loop.run_in_executor(self._thread, self._timed, requests)
            future.add_done_callback(lambda future: self._finish(batch, rows, future.result()))

    def _finish(self, batch: list[Ticket], rows: int, answered: tuple[list[Rows | Exception], float]) -> None:
        outcomes, seconds = answered
        self._learn(rows, seconds)
        if self._waiting:
            self._loop.call_soon(self._next)
        else:
            self._rest()
        for ticket, outcome in zip(batch, outcomes, strict=True):
            ticket.share_s = seconds * ticket.num_rows / rows
            if not ticket.is_cancelled:
                ticket.done(outcome)

    def _rest(self) -> None:
        self._is_running = False
        self._idle.set()

    def _is_behind(self) -> bool:
        """Whether what waits takes so long that who comes now had better ask elsewhere or later."""
        if not self._waiting or not self._recent:
            return False
        pass_s = sum(seconds for _, seconds in self._recent) / len(self._recent)
        return self._rows_waiting / self.pass_rows * pass_s > self._max_wait_s

    def _is_quick(self, first: Ticket, num_rows: int) -> bool:
        """Whether recent passes say that so many rows are answered at once: at most twice what was quick before."""
        if any(array.dtype == object for array in first.inputs.values()):
            return False
        quick = [rows for rows, seconds in self._recent if seconds < QUICK_S]
        return len(self._recent) == RECENT_PASSES and bool(quick) and num_rows <= 2 * max(quick)

    def _timed(self, requests: list[Rows]) -> tuple[list[Rows | Exception], float]:
        started = time.perf_counter()
        return self._compute(requests), time.perf_counter() - started

    def _learn(self, rows: int, seconds: float) -> None:
        if seconds > SLOW_S:
            # Not only more rows make a pass slow (longer texts do): what was quick has to show it anew, in the thread.
            self._recent.clear()
        self._recent.append((rows, seconds))
        # More rows than that are one large request: no choice of the batcher's.
        if self._target_s is not None and rows <= self.pass_rows:
            if rows == 1:
                self._single_s = 0.8 * self._single_s + 0.2 * seconds if self._single_s else seconds
            if seconds > max(self._target_s / 2, 2 * self._single_s):
                self._rows = max(1.0, rows * BACK_OFF)
            elif rows == self.pass_rows:
                self._rows = min(float(self.max_rows), self._rows + STEP_ROWS)
        if self._on_pass is not None:
            self._on_pass(rows, seconds)

    def _take(self) -> tuple[list[Ticket], int]:
        """The next requests in order of arrival, whole ones alike in types and inner shapes, and their rows.

        No more than `pass_rows`, unless the first alone has more.
        """
        batch: list[Ticket] = []
        num_rows, most, now = 0, self.pass_rows, time.perf_counter()
        while self._waiting:
            ticket = self._waiting[0]
            if batch and (num_rows + ticket.num_rows > most or ticket.kind != batch[0].kind):
                break
            ticket.started = now
            batch.append(self._waiting.popleft())
            num_rows += ticket.num_rows
        self._rows_waiting -= num_rows
        return batch, num_rows

    def _compute(self, requests: list[Rows]) -> list[Rows | Exception]:
        try:
            return list(_split(self._passes(_beside(requests)), [_num_rows(inputs) for inputs in requests]))
        except Exception as error:  # noqa: BLE001 - handed to the request that caused it
            if len(requests) == 1:
                return [error]
        # One request's fault must not fail the others: each is asked again by itself.
        return [outcome for inputs in requests for outcome in self._compute([inputs])]

    def _passes(self, inputs: Rows) -> Rows:
        """`predict` on at most `max_rows` rows at a time."""
        num_rows = _num_rows(inputs)
        if num_rows <= self.max_rows:
            return _checked(self._predict(inputs), num_rows)
        starts = range(0, num_rows, self.max_rows)
        return _concatenate([self._passes(_slice(inputs, start, start + self.max_rows)) for start in starts])

    def _kind(self, inputs: Rows) -> Kind:
        return tuple(
            (name, array.dtype, array.shape[2 if name in self._any_length else 1 :]) for name, array in inputs.items()
        )


def _num_rows(arrays: Rows) -> int:
    return len(next(iter(arrays.values())))


def _slice(arrays: Rows, start: int, stop: int) -> Rows:
    return {name: array[start:stop] for name, array in arrays.items()}


def _beside(requests: list[Rows]) -> Rows:
    """Requests of one kind, one below the other; those of any length as long as the longest."""
    if len(requests) == 1:
        return requests[0]
    longest = {
        name: max(inputs[name].shape[1] for inputs in requests) for name, array in requests[0].items() if array.ndim > 1
    }
    return _concatenate(
        [
            {name: _filled(array, longest[name]) if name in longest else array for name, array in inputs.items()}
            for inputs in requests
        ]
    )


def _filled(array: NDArray[np.generic], length: int) -> NDArray[np.generic]:
    if array.shape[1] == length:
        return array
    filled = np.full((len(array), length, *array.shape[2:]), np.nan, array.dtype)
    filled[:, : array.shape[1]] = array
    return filled


def _concatenate(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _split(outputs: Rows, sizes: list[int]) -> list[Rows]:
    if len(sizes) == 1:
        return [outputs]
    ends = np.cumsum(sizes).tolist()
    return [_slice(outputs, end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _checked(outputs: Rows, num_rows: int) -> Rows:
    # A model that drops or adds rows would hand one request another's answer.
    for name, array in outputs.items():
        if len(array) != num_rows:
            raise RuntimeError(f"the model answered {len(array)} rows of {name!r} for {num_rows} rows")
    return outputs
