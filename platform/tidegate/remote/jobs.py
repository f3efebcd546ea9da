"""A cluster through its Jobs API: submitting a job, following what it prints, and what it came to."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tidegate
from tidegate import dashboard, ray_token
from tidegate.errors import ClusterError, TidegateError
from tidegate.remote import words

Say = Callable[[str], None]
RUN = "tidegate.run"
"""Metadata of the jobs that carry a run: its name."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""As jobs/runtime_env.yaml has it."""
LOOK_EVERY_S = 0.5
LOST_AFTER_S = 60.0
"""How long a cluster may be out of reach before following it ends."""
_OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@dataclass
class Output:
    """What a job printed, told apart: lines for people go to `say`, what they carry for us is kept."""

    say: Say
    result: Any = None
    error: TidegateError | None = None
    begun: bool = False
    _seen: int = 0

    def take(self, everything: str) -> None:
        """All that was printed so far; only whole lines that are new are told."""
        end = everything.rfind("\n") + 1
        new, self._seen = everything[self._seen : end], max(end, self._seen)
        for line in new.splitlines():
            self._line(line)

    def _line(self, line: str) -> None:
        if not self.begun:
            self.begun = line == words.BEGUN
        elif line.startswith(words.RESULT):
            self.result = words.read_result(line)
        elif line.startswith(words.ERROR):
            self.error = words.read_error(line)
        elif self.error is None:  # after it the job says the same for people, who hear it from this process
            self.say(line)


class Jobs:
    """The Jobs API of one cluster. `url` is its dashboard's, such as http://head:8265."""

    def __init__(self, url: str) -> None:
        """Raises ClusterError when nothing answers, or it does not take this machine's token."""
        self.url = url.rstrip("/")
        token = ray_token.find()
        headers = token.header if token else {}
        _check(self.url, headers, token is not None)
        from ray.job_submission import JobSubmissionClient

        with _without(_OVERRIDING), _explained(self.url):
            self._client = JobSubmissionClient(self.url, headers=dict(headers))

    def submit(self, arguments: list[str], *, files: Mapping[str, str], run: str = "") -> str:
        """Start `python -m tidegate.remote.entry ARGUMENTS` with `files` in its working directory; the job's id.

        Tidegate's own code travels with it, so the cluster needs only its dependencies.
        """
        command = shlex.join(["python", "-m", "tidegate.remote.entry", *arguments])
        with tempfile.TemporaryDirectory(prefix="tidegate-job-") as folder, _explained(self.url):
            for name, text in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            environment = {"py_modules": [str(Path(tidegate.__file__).parent)], "env_vars": ENVIRONMENT}
            return str(
                self._client.submit_job(
                    entrypoint=command,
                    runtime_env=environment | ({"working_dir": folder} if files else {}),
                    metadata={RUN: run} if run else {},
                    submission_id=f"{run or 'tidegate'}-{secrets.token_hex(4)}",
                )
            )

    def follow(self, job: str, say: Say) -> Any:
        """Tell what the job prints until it has ended; what it answered. Raises the error that it told of."""
        output, seen_at = Output(say), time.monotonic()
        while True:
            try:
                with _explained(self.url):
                    info = self._client.get_job_info(job)
                    output.take(self._client.get_job_logs(job))
                seen_at = time.monotonic()
            except ClusterError:
                if time.monotonic() - seen_at > LOST_AFTER_S:
                    raise
            else:
                if info.status.is_terminal():
                    break
            time.sleep(LOOK_EVERY_S)
        if output.error is not None:
            raise output.error
        if str(info.status) != "SUCCEEDED":
            raise _ended(job, info, output.begun)
        return output.result

    def call(self, what: str, /, *, files: Mapping[str, str] | None = None, **arguments: Any) -> Any:
        """What the cluster's side answers to a call. Takes seconds: a process starts and joins there."""
        job = self.submit(["call", what, json.dumps(arguments)], files=files or {})
        return self._followed(job, _nowhere)

    def command(self, arguments: list[str], say: Say) -> None:
        """Run a `tidegate` command there and tell what it prints. Ctrl-C ends it."""
        self._followed(self.submit(["cli", *arguments], files={}), say)

    def end(self, job: str) -> None:
        """Send the job's process SIGTERM."""
        with _explained(self.url):
            self._client.stop_job(job)

    def why_ended(self, run: str) -> str:
        """Why the last job for a run ended, when it has; "" while it goes on, or when there was none."""
        job = self.job_of(run)
        if job is None:
            return ""
        with _explained(self.url):
            info = self._client.get_job_info(job)
        return _ended(job, info, True).happened if info.status.is_terminal() else ""

    def job_of(self, run: str) -> str | None:
        """The last job that was submitted here to carry a run; None when there is none."""
        with _explained(self.url):
            jobs = [job for job in self._client.list_jobs() if (job.metadata or {}).get(RUN) == run]
        newest = max(jobs, key=lambda job: job.start_time or 0, default=None)
        return str(newest.submission_id) if newest else None

    def _followed(self, job: str, say: Say) -> Any:
        try:
            return self.follow(job, say)
        except KeyboardInterrupt:
            self.end(job)
            raise


def _nowhere(_: str) -> None: ...


def _ended(job: str, info: Any, has_begun: bool) -> ClusterError:
    """The error of a job that ended without a word for us."""
    where = "" if has_begun else " before it began"
    last = (info.message or "").strip().splitlines()[-1:]
    happened = f"job {job} ended as {info.status}{where}{f': {last[0][:300]}' if last else ''}"
    return ClusterError(happened, remedy=f"`ray job logs {job}` shows what it printed")


def _check(url: str, headers: Mapping[str, str], has_token: bool) -> None:
    answer = dashboard.ask(url, headers)
    if answer is None:
        raise ClusterError(f"no cluster answers at {url}", remedy="correct the address; `tidegate doctor` looks")
    if answer.status in (401, 403):
        here = "does not take the token of this machine" if has_token else "asks for a token and there is none here"
        raise ClusterError(f"the cluster at {url} {here}", remedy=f"copy the head's {ray_token.DEFAULT} to here")
    if answer.status != 200:
        raise ClusterError(f"{url} answers, but is no Ray (status {answer.status})", expected="http://head:8265")


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Ray's client lets these variables replace the address that it is given."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"the Jobs API at {url}: {_first(str(error))}", remedy="`tidegate doctor` looks") from error


def _first(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0][:300]
