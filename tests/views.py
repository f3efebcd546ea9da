"""All that a person gets to see of a home directory without a cluster, each view in a process of its own.

Run as a module of a fork server: what is imported here is imported once.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from tidegate import artifact, registry, settings, store
from tidegate.cli import main as shell
from tidegate.data.prepared import open_folder
from tidegate.errors import TidegateError
from tidegate.serving import desired
from tidegate.training.checkpoint import Checkpoints

store.load_mlflow()
TIMEOUT_S = 120
View = Callable[[], str]


@dataclass(frozen=True)
class Seen:
    """What came of looking: the exit code of a shell, and what was written."""

    code: int
    told: str
    complaint: str


def command(*words: str) -> View:
    """What a command prints."""

    def run() -> str:
        sys.argv = ["tidegate", *words]
        shell.main()
        return ""

    return run


def answers(ref: str) -> View:
    """What a version answers, in one line."""

    def ask() -> str:
        version = registry.version(ref)
        model = artifact.load(Path(version.path), version.digest)
        found = model.predict(model.example(3))
        return json.dumps({name: np.asarray(value).tolist() for name, value in sorted(found.items())})

    return ask


def prepared() -> str:
    """A digest of each prepared split."""
    lines = []
    for folder in sorted(path for path in (settings.home() / "prepared").iterdir() if path.is_dir()):
        data = open_folder(folder)
        for split in ("train", "validation", "test"):
            rows = data.reader(split).read(np.arange(data.num_rows(split)))
            digest = hashlib.sha256(b"".join(name.encode() + rows[name].tobytes() for name in sorted(rows)))
            lines.append(f"{split} {digest.hexdigest()}")
    return "\n".join(lines)


def checkpoints(run: str) -> View:
    """The step and a digest of the checkpoint that a run goes on from."""

    def look() -> str:
        found = Checkpoints(str(settings.home() / "runs" / run / "checkpoints")).latest()
        if found is None:
            return ""
        tensors = {f"{part}.{name}": each for part, of in found.tensors.items() for name, each in of.items()}
        digest = hashlib.sha256(b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors)))
        return f"step {found.step} {digest.hexdigest()}"

    return look


def endpoints() -> str:
    return "\n".join(sorted(desired.load_all()))


def views(run: str, ref: str) -> dict[str, View]:
    return {
        "models": command("models"),
        "show": command("models", "show", ref),
        "history": command("models", "history", *ref.split("@")),
        "runs": command("runs"),
        "status": command("status", run),
        "logs": command("logs", run),
        "cluster": command("status"),
        "answers": answers(ref),
        "prepared": prepared,
        "checkpoints": checkpoints(run),
        "endpoints": endpoints,
    }


def look(home: Path, run: str, ref: str) -> Mapping[str, Seen]:
    """Look at everything in a home directory, in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["views"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(there, str(home), run, ref))
    process.start()
    there.close()
    try:
        if not here.poll(TIMEOUT_S):
            raise TimeoutError(f"looking at {home} takes over {TIMEOUT_S} s")
        found: Mapping[str, Seen] = here.recv()
    finally:
        process.kill()
        process.join()
    return found


def _tell(pipe: Connection, home: str, run: str, ref: str) -> None:
    os.environ["TIDEGATE_HOME"] = os.environ["HOME"] = home
    pipe.send({name: _seen(view) for name, view in views(run, ref).items()})


def _seen(view: View) -> Seen:
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            out.write(view())
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        except TidegateError as error:
            code = error.exit_code
            err.write(f"error: {error}\n")
    return Seen(code, out.getvalue(), err.getvalue())
