"""What a person is shown of a run: every sentence once, on a terminal and in a log."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from tidegate import console
from tidegate.console import PHASES, Console, duration, live, sentence
from tidegate.training.progress import News, Phase, Progress, Totals

RUNNING = Progress(
    step=120, total_steps=400, epoch=3, epochs=10, loss=0.05214, rows_per_s=4033.4, workers=2, seconds_left=12.3
)
SENTENCE = "step 120/400, epoch 3/10, loss 0.0521, 2 workers, 4,033 rows/s, 12 s left"


class Terminal(io.StringIO):
    """Remembers what is written to it, and says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[io.StringIO, Terminal])
def out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A log, and a terminal that is wide enough for every line."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    return request.param()


def epoch(number: int) -> dict[str, Any]:
    return {"epoch": number, "step": 10 * number, "train.loss": 0.5 / number, "validation.accuracy": 0.9, "lr": 0.1}


def test_sentences_of_a_run_are_lines_of_their_own(out: io.StringIO) -> None:
    with Console(out) as shown:
        shown.say("training cnn as run digits-7f3")
        shown.on_news(News(RUNNING, phase="training"))
        shown.on_news(News(RUNNING, phase="yielding", lines=["changing to [bold] workers (asked for)", "a second one"]))
        shown.say("paused at step 120")
    text = out.getvalue()
    for line in ("training cnn as run digits-7f3", "changing to [bold] workers (asked for)", "a second one"):
        assert text.count(line) == 1
    assert text.index("(asked for)") < text.index("a second one") < text.index("paused at step 120")


def test_a_log_tells_progress_now_and_then_and_nothing_that_lines_say(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now))
    out = io.StringIO()
    with Console(out) as shown:
        for phase in get_args(Phase):
            now += 2 * console.PLAIN_EVERY_S
            shown.on_news(News(RUNNING, phase=phase))
        for _ in range(2):
            shown.on_news(News(RUNNING, phase="training"))
            now += console.PLAIN_EVERY_S / 2
    assert out.getvalue() == f"{SENTENCE}\n{SENTENCE}\n"


@pytest.mark.parametrize("phase", get_args(Phase))
def test_a_terminal_shows_every_phase_while_it_lasts(phase: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with Console(out) as shown:
        shown.on_news(News(RUNNING, phase=phase))
    assert (SENTENCE if phase == "training" else f"{PHASES[phase]}, step 120/400") in out.getvalue()


def test_epochs_that_come_fast_are_not_all_told_but_the_last_is(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "EPOCH_LINES_EVERY_S", 1e6)
    with Console(out) as shown:
        shown._epoch_at = float("-inf")
        for number in (1, 2, 3):
            shown.on_news(News(RUNNING, [epoch(number)], phase="training"))
        shown.on_news(News(RUNNING, phase="training", lines=["changing to 3 workers"]))
        shown.on_news(News(RUNNING, [epoch(4)], phase="training"))
    text = out.getvalue()
    assert [f"epoch {number:>3}" in text for number in (1, 2, 3, 4)] == [True, False, True, True]
    assert text.index("epoch   3") < text.index("changing to 3 workers") < text.index("epoch   4")
    assert "train.loss 0.5000" in text
    assert "validation.accuracy 0.9000" in text


class Slow(Terminal):
    """A terminal in the midst of being drawn on until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_drawn_on, self.may_go_on = threading.Event(), threading.Event()

    def isatty(self) -> bool:
        self.is_drawn_on.set()
        assert self.may_go_on.wait(20)
        return True


def test_who_speaks_waits_until_news_are_drawn() -> None:
    """Two threads call a console: the one that follows the run and the one that carries it."""
    out = Slow()
    shown = Console(out)
    follows = threading.Thread(target=shown.on_news, args=(News(RUNNING, phase="training"),))
    carries = threading.Thread(target=shown.say, args=("paused at step 120",))
    follows.start()
    assert out.is_drawn_on.wait(20)
    carries.start()
    carries.join(0.2)
    assert "paused" not in out.getvalue()
    out.may_go_on.set()
    for thread in (follows, carries):
        thread.join(20)
    assert out.getvalue().count("paused at step 120") == 1


def test_what_is_not_known_yet_is_not_shown() -> None:
    first = Progress(step=1, total_steps=400, epoch=1, epochs=10, loss=2.3, workers=1, seconds_left=1e12)
    assert sentence(RUNNING) == SENTENCE
    assert sentence(first) == "step 1/400, epoch 1/10, loss 2.3000, 1 worker"
    assert live(News(Progress(), phase="waiting")) == "waiting for room"
    assert live(News(Progress(workers=2), phase="training")) == "training"
    assert live(News(RUNNING, phase="paused", totals=Totals(pauses=1))) == "paused, step 120/400"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (190, "3 min 10 s"),
        (7500, "2 h 5 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
