"""Every file under the home directory, deleted or cut in half, one at a time: a line that says so, or what was there
before, never a traceback and never another answer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import stranger as strangers
import views
from ports import free_port
from stranger import Stranger
from views import Seen

pytestmark = pytest.mark.cluster

HALFWAY, REF = "halfway", "digits@production"
WHOLE = ("answers", "prepared", "checkpoints")
"""What is told of these must be all of it or nothing; of the others, lines may be missing."""


def deleted(path: Path) -> None:
    path.unlink()


def halved(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@dataclass(frozen=True)
class Kept:
    """A home directory with a served version, and a run that was stopped halfway; a copy of it that stays whole."""

    stranger: Stranger
    whole: Path

    def restore(self) -> None:
        shutil.rmtree(self.stranger.kept)
        shutil.copytree(self.whole, self.stranger.kept)

    def look(self) -> Mapping[str, Seen]:
        return views.look(self.stranger.kept, HALFWAY, REF)


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    def short(document: dict[str, Any]) -> None:
        document["train"] |= {"epochs": 12, "workers": {"min": 1, "max": 1}}
        document["evaluate"]["require"] = {"test.accuracy": {"at_least": 0.8}}

    def endless(document: dict[str, Any]) -> None:
        document["train"] |= {"epochs": 5000, "workers": {"min": 1, "max": 1}, "checkpoint": {"every_steps": 100}}

    stranger = strangers.new_stranger()
    try:
        stranger.run("python", "jobs/datasets/digits.py")
        stranger.run("tidegate", "up", "--port", str(free_port()))
        stranger.run("tidegate", "train", stranger.write_spec(short))
        stranger.run("tidegate", "train", stranger.write_spec(endless), "--name", HALFWAY, "--detach")
        until(lambda: len(list(stranger.kept.glob(f"runs/{HALFWAY}/checkpoints/*/checkpoint.json"))) > 1)
        stranger.run("tidegate", "stop", HALFWAY)
        stranger.run("tidegate", "down")
        whole = stranger.home.parent / "whole"
        shutil.copytree(stranger.kept, whole)
        yield Kept(stranger, whole)
    finally:
        strangers.leave(stranger)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_what_is_told_of_a_damaged_home_is_true(kept: Kept) -> None:
    before = kept.look()
    assert [name for name, seen in before.items() if seen.code] == ["cluster"], before
    troubles = []
    for path in sorted(path.relative_to(kept.whole) for path in kept.whole.rglob("*") if path.is_file()):
        for damage in (deleted, halved):
            kept.restore()
            damage(kept.stranger.kept / path)
            for name, now in kept.look().items():
                if trouble := wrong(name, before[name], now):
                    troubles.append(f"{damage.__name__} {path}, {name}: {trouble}")
    assert not troubles, "\n".join(troubles)


def wrong(name: str, before: Seen, now: Seen) -> str:
    """What is not as it should be; "" for a line, what was there before, or less than that."""
    if now.code:
        lines = now.complaint.splitlines()
        is_line = len(lines) == 1 and lines[0].startswith("error: ") and now.code == 2
        return "" if is_line else f"code {now.code}, {now.complaint!r}"
    if "Traceback" in now.complaint:
        return now.complaint
    if name in WHOLE:
        return "" if now.told in (before.told, "") else f"{now.told!r} in place of {before.told!r}"
    *lines, last = now.told.splitlines() or [""]
    known = set(before.told.splitlines())
    # Of a text that was cut, the last line may be a part of one.
    new = {*lines, *([] if any(line.startswith(last) for line in known) else [last])} - known
    return f"said {sorted(new)}" if new else ""
