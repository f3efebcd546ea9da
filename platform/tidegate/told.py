"""What a run told its person, and where it runs: kept in the run's folder, by its driver alone.

`log.txt` is text, one line a message, each with its time (UTC). When it is full it becomes `log.before.txt` and begins
anew, so a run keeps the newest mebibyte or two.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

logger = logging.getLogger(__name__)

LOG, BEFORE, CARRIER = "log.txt", "log.before.txt", "driver.json"
LIMIT = 2**20
"""Bytes of one file."""


class Told(io.TextIOBase):
    """A text stream into a run's log. What cannot be written is dropped: a full disk must not end a run by this."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.path, self.before, self.limit = folder / LOG, folder / BEFORE, limit
        self._begun = ""
        self._failed = False

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
            self._append("".join(f"{now}  {line}\n" for line in lines))
        return len(text)

    def _append(self, text: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size + len(text) > self.limit:
                self.path.replace(self.before)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            if not self._failed:
                logger.warning("the log of the run is not kept: %s", error)
            self._failed = True


def text(folder: Path) -> str:
    """All that is kept of a run's log; "" when nothing is."""
    return "".join(path.read_text(encoding="utf-8") for path in (folder / BEFORE, folder / LOG) if path.exists())


def follow(folder: Path, is_over: Callable[[], bool], wait: Callable[[], None]) -> Iterator[str]:
    """The log in pieces as it grows, until nobody writes it any more (`is_over`). `wait` passes some time."""
    path, read, seen = folder / LOG, 0, 0
    yield _since(folder / BEFORE, 0)
    while True:
        was_over = is_over()
        if path.exists():
            if path.stat().st_ino != seen:
                # It was full: what came last is in the file before.
                rest = _since(folder / BEFORE, read) if seen else ""
                read, seen = 0, path.stat().st_ino
                if rest:
                    yield rest
            new = _since(path, read)
            read += len(new.encode())
            if new:
                yield new
        if was_over:
            return
        wait()


def _since(path: Path, start: int) -> str:
    """The whole lines of a file from byte `start` on."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
    except OSError:
        return ""
    return content[: content.rfind(b"\n") + 1].decode(errors="replace")


@dataclass(frozen=True)
class Carrier:
    """The driver of a run: its process, its job in Ray, and the folder where Ray keeps logs on every node.

    `submission` is "" unless it was submitted as a job; `logs` is "" where this Ray does not tell.
    """

    host: str
    pid: int
    job: str
    submission: str
    logs: str

    @classmethod
    def here(cls, job: str, logs: str) -> Carrier:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), job, _submission(), logs)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{CARRIER}.partial"
        new.write_text(json.dumps(asdict(self)))
        new.replace(folder / CARRIER)

    @classmethod
    def read(cls, folder: Path) -> Carrier | None:
        """The last driver of a run; None when it left nothing, or nothing whole."""
        try:
            return cls(**json.loads((folder / CARRIER).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def described(self) -> list[tuple[str, str]]:
        """Lines with their labels."""
        lines = [("driver", f"process {self.pid} on {self.host}")]
        if self.submission:
            lines.append(("its output", f"ray job logs {self.submission}"))
        if self.logs:
            lines.append(("Ray's logs", f"{self.logs}/worker-*-{self.job}-*, on every node that had workers"))
        return lines


def left_alone(run: str) -> str:
    """What a person is told who stops looking at a run that goes on elsewhere."""
    return f"{run} is left as it is: tidegate logs {run} --follow looks again, tidegate stop {run} ends it"


def _submission() -> str:
    """The id under which this process was submitted to Ray's Jobs API; "" when it was not."""
    try:
        return str(json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"])
    except (KeyError, ValueError, TypeError):
        return ""
