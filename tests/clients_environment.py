"""A virtual environment of their own for programs that others wrote, as a user of theirs has it."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

CLIENTS = Path(__file__).parent / "strangers_clients"


def make(folder: Path, *packages: str) -> Path:
    """The folder of its programs, `python` among them."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", *packages], check=True, timeout=900)
    return programs


def run(*command: str | Path, folder: Path | None = None, timeout: float = 300, **variables: str) -> str:
    """What the command printed. Fails unless it ends well."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    words = [str(word) for word in command]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment, cwd=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
