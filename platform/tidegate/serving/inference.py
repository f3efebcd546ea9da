"""One inference request on its way through an endpoint, whichever protocol it came by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from tidegate.errors import UnavailableError
from tidegate.protocol import InferRequest
from tidegate.serving.access_log import AccessLog
from tidegate.serving.batching import Batcher, Rows, Ticket
from tidegate.serving.exchange import Cancel, HttpError
from tidegate.serving.gate import Gate, Pass
from tidegate.serving.limits import Limits
from tidegate.serving.meter import Meter, summed
from tidegate.serving.tracing import Ended, Protocol, Tracing

if TYPE_CHECKING:
    from tidegate.loaded import Model

_GONE = 499
"""The status under which a request is counted that nobody waited for to the end; no client sees it."""


@dataclass(frozen=True)
class Loaded:
    """A version that is ready to answer."""

    version: int
    model: Model
    batcher: Batcher
    limits: Limits


Read = Callable[[Loaded], InferRequest]
Write = Callable[[Loaded, Rows, InferRequest], Callable[[], None]]
"""Makes the answer, and returns what sends it."""
Refuse = Callable[[Exception], int]
"""Tells the client of an error; returns the HTTP status that it is counted under."""


class Inference:
    """Answers inference requests; `loaded` is the version that does, None before there is one."""

    def __init__(self, name: str, meter: Meter, gate: Gate) -> None:
        self.loaded: Loaded | None = None
        self.name = name
        self.meter = meter
        self.log: AccessLog | None = None
        self.tracing: Tracing | None = None
        self.others: Callable[[], Awaitable[list[dict[str, Any]]]] | None = None
        """Asks the endpoint's other replicas for their statistics."""
        self._gate = gate
        self._waiting: set[asyncio.Task[None]] = set()

    def ready(self) -> Loaded:
        """Raises UnavailableError while the first version loads."""
        if self.loaded is None:
            raise UnavailableError(f"endpoint {self.name!r} is loading its model")
        return self.loaded

    def check(self, headers: Mapping[bytes, bytes]) -> str:
        """The tenant who asks about the endpoint. Raises HttpError."""
        return self._gate.check(headers)

    async def statistics(self, loaded: Loaded) -> dict[str, Any]:
        """Of all replicas that serve the same version, as far as they answer."""
        own = self.meter.statistics(self.name, str(loaded.version))
        others = await self.others() if self.others is not None else []
        return summed([own, *(each for each in others if each["version"] == own["version"])])

    def infer(
        self, headers: Mapping[bytes, bytes], read: Read, write: Write, refuse: Refuse, protocol: Protocol = "http"
    ) -> Cancel | None:
        """Has the request answered, by `write` or by `refuse`; what is returned is called when nobody waits for it."""
        call = _Call(self, self._gate, headers, read, write, refuse, protocol)
        try:
            if call.enter():
                return call.cancel
        except Exception as error:  # noqa: BLE001 - told to the client, and counted
            call.fail(error)
            return None
        task = asyncio.get_running_loop().create_task(call.enter_later())
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return call.cancel


class _Call:
    def __init__(
        self,
        inference: Inference,
        gate: Gate,
        headers: Mapping[bytes, bytes],
        read: Read,
        write: Write,
        refuse: Refuse,
        protocol: Protocol,
    ) -> None:
        self._inference, self._gate, self._headers = inference, gate, headers
        self._read, self._write, self._refuse, self._protocol = read, write, refuse, protocol
        self._arrived = time.perf_counter()
        self._tenant = ""
        self._pass: Pass | None = None
        self._loaded: Loaded | None = None
        self._ticket: Ticket | None = None
        self._asked: InferRequest | None = None
        self._read_s = self._computed = 0.0
        self._is_over = False

    def enter(self) -> bool:
        """Starts, if the tenant's limit says so at once."""
        self._tenant = self._gate.check(self._headers)
        entered = self._gate.enter(self._tenant)
        if entered is None:
            return False
        self._start(entered)
        return True

    async def enter_later(self) -> None:
        try:
            entered = await self._gate.wait(self._tenant)
            if self._is_over:
                self._gate.leave(entered)
            else:
                self._start(entered)
        except Exception as error:  # noqa: BLE001 - told to the client, and counted
            self.fail(error)

    def _start(self, entered: Pass) -> None:
        # Nothing waits between choosing the version and asking it, so that no swap comes in between.
        self._pass = entered
        self._loaded = self._inference.ready()
        self._asked = self._read(self._loaded)
        self._read_s = time.perf_counter() - self._arrived
        self._ticket = self._loaded.batcher.submit(self._asked.inputs, self._done)

    def _done(self, outcome: Rows | Exception) -> None:
        assert self._loaded is not None
        assert self._asked is not None
        assert self._ticket is not None
        answered, ticket = time.perf_counter(), self._ticket
        self._computed = answered
        try:
            if isinstance(outcome, Exception):
                raise outcome
            send = self._write(self._loaded, outcome, self._asked)
        except Exception as error:  # noqa: BLE001 - told to the client, and counted
            self.fail(error)
            return
        self._inference.meter.computed(
            self._tenant,
            ticket.num_rows,
            ticket.share_s,
            read=self._read_s,
            queue=ticket.started - ticket.arrived,
            compute=answered - ticket.started,
            write=time.perf_counter() - answered,
        )
        self._leave(200)
        send()

    def fail(self, error: Exception) -> None:
        if not self._is_over:
            self._leave(self._refuse(error), error)

    def cancel(self) -> None:
        """The client has gone, or has been told that it took too long."""
        if not self._is_over:
            if self._ticket is not None and self._loaded is not None:
                self._loaded.batcher.cancel(self._ticket)
            self._leave(_GONE)

    def _leave(self, status: int, error: Exception | None = None) -> None:
        self._is_over = True
        left = time.perf_counter()
        seconds = left - self._arrived
        self._inference.meter.answered(self._tenant, status, seconds)
        log = self._inference.log
        if log is not None and log.wants():
            log.write(self._line(status, seconds))
        if self._inference.tracing is not None:
            self._inference.tracing.tell(self._ended(status, error, left))
        if self._pass is not None:
            self._gate.leave(self._pass)
        # The ticket refers to this call: apart, both are freed at once, and the garbage collector need not find them.
        self._ticket = None

    def _line(self, status: int, seconds: float) -> dict[str, object]:
        """What the access log has of the request."""
        line: dict[str, object] = {"tenant": self._tenant, "status": status, "ms": round(seconds * 1000, 3)}
        if self._loaded is not None:
            line["version"] = self._loaded.version
        if self._ticket is not None:
            line["rows"] = self._ticket.num_rows
            line["queue_ms"] = round((self._ticket.started - self._ticket.arrived) * 1000, 3)
        if sent_id := self._headers.get(b"x-request-id"):
            line["request_id"] = sent_id.decode("latin-1")
        return line

    def _ended(self, status: int, error: Exception | None, left: float) -> Ended:
        """What a span has of the request."""
        version = self._loaded.version if self._loaded is not None else None
        times = (self._arrived, self._computed, left)
        return Ended(self._headers, self._protocol, self._tenant, version, self._ticket, status, error, *times)


def check_version(asked: str, loaded: Loaded) -> None:
    """Raises HttpError 404 when another version is asked for than the one that is served. Empty asks for any."""
    if asked and asked != str(loaded.version):
        raise HttpError(HTTPStatus.NOT_FOUND, f"version {asked!r} is not served here; version {loaded.version} is")
