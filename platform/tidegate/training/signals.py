"""Signals to the driver of a run: the first asks it to stop at a checkpoint, another interrupts it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """`received` is the first signal that came, None while none did."""

    def __init__(self, ask: Callable[[signal.Signals], None]) -> None:
        self.received: signal.Signals | None = None
        self._ask = ask

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        # Not in the handler: it may have interrupted a call into Ray that holds a lock.
        threading.Thread(target=self._ask, args=(self.received,), daemon=True).start()


@contextmanager
def heeded(ask: Callable[[signal.Signals], None]) -> Iterator[Signals]:
    """While inside, SIGTERM and SIGINT ask. In a thread other than the main one nothing changes."""
    signals = Signals(ask)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals) for number in ASKING}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
