"""Every file under the home directory, deleted or cut in half, one at a time: a line that says so, or what was there
before, never a traceback and never another answer."""

from __future__ import annotations

import json
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

    def long(document: dict[str, Any]) -> None:
        document["train"] |= {"epochs": 200, "workers": {"min": 1, "max": 1}, "checkpoint": {"every_steps": 100}}
        del document["publish"]

    stranger = strangers.new_stranger()
    try:
        stranger.run("python", "jobs/datasets/digits.py")
        stranger.run("tidegate", "up", "--port", str(free_port()))
        stranger.run("tidegate", "train", stranger.write_spec(short))
        stranger.run("tidegate", "train", stranger.write_spec(long), "--name", HALFWAY, "--detach")
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
    shutil.rmtree(max((kept.stranger.kept / "runs" / HALFWAY / "checkpoints").iterdir()))
    older = kept.look()["checkpoints"].told
    assert older.startswith("step ")
    assert older != before["checkpoints"].told
    troubles = []
    for path in sorted(path.relative_to(kept.whole) for path in kept.whole.rglob("*") if path.is_file()):
        for damage in (deleted, halved):
            kept.restore()
            damage(kept.stranger.kept / path)
            for name, now in kept.look().items():
                if trouble := wrong(name, before[name], now, older):
                    troubles.append(f"{damage.__name__} {path}, {name}: {trouble}")
    assert not troubles, "\n".join(troubles)


def wrong(name: str, before: Seen, now: Seen, older: str) -> str:
    """What is not as it should be; "" for a line, what was there before, or less than that."""
    if now.code:
        lines = now.complaint.splitlines()
        is_line = len(lines) == 1 and lines[0].startswith("error: ") and now.code == 2
        return "" if is_line else f"code {now.code}, {now.complaint!r}"
    if "Traceback" in now.complaint:
        return now.complaint
    if name in WHOLE:
        return "" if now.told in (before.told, "", older) else f"{now.told!r} in place of {before.told!r}"
    known = before.told.split()
    # What is not known any more is a dash; of a text that was cut, the last word may be a part of one.
    new = [word for word in now.told.split() if word != "-" and not any(old.startswith(word) for old in known)]
    return f"said {new}" if new else ""


def test_a_run_goes_on_from_what_is_whole(kept: Kept) -> None:
    """Each file that a stopped run goes on from, one at a time: it ends with the same model, or says why not."""
    read = ("checkpoints/*/*", "spec.yaml", "status.json", "steps")
    paths = [path for pattern in read for path in kept.whole.glob(f"runs/{HALFWAY}/{pattern}")]
    paths = sorted(path.relative_to(kept.whole) for path in [*paths, *kept.whole.glob("prepared/*/*")])
    digests, troubles = set(), []
    for path in paths:
        kept.restore()
        halved(kept.stranger.kept / path)
        kept.stranger.run("tidegate", "up", "--port", str(free_port()))
        done = kept.stranger.run("tidegate", "resume", HALFWAY, check=False)
        kept.stranger.run("tidegate", "down")
        if done.returncode == 0:
            digests |= {
                json.loads(p.read_text())["digest"]
                for p in kept.stranger.kept.glob(f"artifacts/*/{HALFWAY}/artifact.json")
            }
        elif done.returncode != 2 or done.stderr.count("\n") != 1:
            troubles.append(f"{path}: {done.returncode}, {done.stderr!r}")
    assert not troubles, "\n".join(troubles)
    assert len(digests) == 1
