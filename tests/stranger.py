"""A stranger's surroundings: an empty home, a copy of the repository's files, commands as a shell runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TIMEOUT_S = 900


@dataclass(frozen=True)
class Stranger:
    """Somebody with an empty home directory and a checkout."""

    home: Path
    checkout: Path

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the project's environment in the checkout. `check`: a non-zero exit code fails the test."""
        done = subprocess.run(
            command,
            cwd=self.checkout,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    @property
    def environment(self) -> dict[str, str]:
        """Of this process, without what it says of clusters."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TIDEGATE_"))}
        path = os.pathsep.join([str(BIN), os.environ["PATH"]])
        return {**inherited, "HOME": str(self.home), "PATH": path, "OMP_NUM_THREADS": "1"}

    def write_spec(self, change: Callable[[dict[str, Any]], None]) -> str:
        """A variation of the shipped digits spec, in its folder; its path in the checkout."""
        document = yaml.safe_load((self.checkout / "jobs/specs/digits.yaml").read_text())
        change(document)
        path = self.checkout / "jobs/specs/varied.yaml"
        path.write_text(yaml.safe_dump(document))
        return "jobs/specs/varied.yaml"

    @property
    def kept(self) -> Path:
        return self.home / ".tidegate"


def new_stranger() -> Stranger:
    # Short: Unix sockets of Ray must fit into 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="tg-", dir="/tmp"))
    checkout = folder / "checkout"
    for part in ("jobs", "deployments", "platform"):
        shutil.copytree(
            ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", ".mypy_cache")
        )
    home = folder / "home"
    home.mkdir()
    return Stranger(home, checkout)


def leave(stranger: Stranger) -> None:
    stranger.run("tidegate", "down", check=False)
    # Ray's dashboard leaves helpers that end by themselves once they see that it is gone.
    deadline = time.monotonic() + 15
    while (left := _processes_of(stranger.home)) and time.monotonic() < deadline:
        time.sleep(0.2)
    shutil.rmtree(stranger.home.parent)
    assert not left, f"processes are left: {left}"


def _processes_of(home: Path) -> list[str]:
    """Command lines of living processes whose environment names this home."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if f"HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found
