"""Real signals to this process: the first asks, the next one interrupts, and the handlers from before come back."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator

import pytest

from tidegate.training.signals import ASKING, heeded

WAIT_S = 20


class Asked:
    """What signals have asked for; `next` waits for one."""

    def __init__(self) -> None:
        self.found: queue.Queue[tuple[signal.Signals, threading.Thread]] = queue.Queue()

    def __call__(self, number: signal.Signals) -> None:
        self.found.put((number, threading.current_thread()))

    def next(self) -> tuple[signal.Signals, threading.Thread]:
        return self.found.get(timeout=WAIT_S)


def send(number: signal.Signals) -> None:
    """Python runs the handler before this returns: the process has one main thread, and it is this one."""
    signal.raise_signal(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ASKING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ASKING)
def test_the_first_signal_asks_in_another_thread_and_interrupts_nothing(number: signal.Signals) -> None:
    asked = Asked()
    with heeded(asked) as signals:
        assert signals.received is None
        send(number)
        found, thread = asked.next()
        assert found is signals.received is number
        assert thread is not threading.main_thread()


@pytest.mark.parametrize("first", ASKING)
@pytest.mark.parametrize("second", ASKING)
def test_the_second_signal_interrupts_at_once_and_asks_nothing(first: signal.Signals, second: signal.Signals) -> None:
    asked = Asked()
    with heeded(asked) as signals:
        send(first)
        asked.next()
        with pytest.raises(KeyboardInterrupt):
            send(second)
        assert signals.received is first
    assert asked.found.empty()


def test_a_signal_of_another_process_is_heeded() -> None:
    asked = Asked()
    with heeded(asked):
        assert os.waitstatus_to_exitcode(os.system(f"kill -TERM {os.getpid()}")) == 0
        assert asked.next()[0] is signal.SIGTERM


def test_the_handlers_from_before_come_back_even_after_an_error() -> None:
    def mine(number: int, frame: object) -> None: ...

    signal.signal(signal.SIGTERM, mine)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(RuntimeError, match="of the run"):
        fail_while_heeded()
    assert signal.getsignal(signal.SIGTERM) is mine
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def fail_while_heeded() -> None:
    with heeded(Asked()) as signals:
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is signals
        raise RuntimeError("of the run")


def test_a_default_handler_comes_back_as_the_default() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with heeded(Asked()):
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_in_another_thread_nothing_changes() -> None:
    before = [signal.getsignal(number) for number in ASKING]
    during: list[object] = []

    def enter() -> None:
        with heeded(Asked()) as signals:
            during.extend([signals.received, *(signal.getsignal(number) for number in ASKING)])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(WAIT_S)
    assert during == [None, *before]
