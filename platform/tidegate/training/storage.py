"""Where checkpoints are kept: a folder of this machine, or any place that pyarrow opens by a URI (`s3://bucket/runs`).

A file appears whole or not at all, as an object store has it. On a local path that takes a file beside it and a rename,
and both are made to survive a loss of power.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property

import pyarrow as pa
import pyarrow.fs as pafs

from tidegate.disk import NO_RIGHT, NO_SPACE
from tidegate.errors import CheckpointError

Chunk = bytes | memoryview


class Storage:
    """Files under `root`, by their path relative to it. Opened at the first use; it may be pickled.

    Every method raises CheckpointError when the place cannot be used: no such bucket, no right, no space.
    """

    def __init__(self, root: str) -> None:
        self.root = root if "://" in root else os.path.abspath(os.path.expanduser(root))

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.root,)

    def place(self, path: str = "") -> str:
        """The full name of a path for a message, without the user, password and options that a URI may carry."""
        root = _without_secrets(self.root).partition("?")[0] if "://" in self.root else self.root
        return posixpath.join(root, path) if path else root

    def write(self, path: str, chunks: Iterable[Chunk]) -> None:
        """Write or replace a file, and make its folder if missing. It is durable when this returns."""
        with self._explained("written", path):
            filesystem, target = self._located(path)
            filesystem.create_dir(posixpath.dirname(target), recursive=True)
            if isinstance(filesystem, pafs.LocalFileSystem):
                _write_through(target, chunks)
                _sync(posixpath.dirname(target))
                _sync(self._located()[1])
                return
            with filesystem.open_output_stream(target) as stream:
                for chunk in chunks:
                    stream.write(chunk)

    def read(self, path: str) -> bytes | None:
        """The content of a file; None when there is none."""
        with self._explained("read", path):
            filesystem, target = self._located(path)
            try:
                with filesystem.open_input_file(target) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def names(self, path: str = "") -> list[str]:
        """What is in a folder, sorted; nothing when there is no such folder."""
        with self._explained("listed", path):
            filesystem, target = self._located(path)
            found = filesystem.get_file_info(pafs.FileSelector(target, allow_not_found=True))
            return sorted(str(info.base_name) for info in found)

    def delete(self, path: str) -> None:
        """Delete a file, or a folder and all that is in it. Nothing happens when it is not there."""
        with self._explained("deleted", path):
            filesystem, target = self._located(path)
            kind = filesystem.get_file_info(target).type
            if kind == pafs.FileType.Directory:
                filesystem.delete_dir(target)
            elif kind != pafs.FileType.NotFound:
                filesystem.delete_file(target)

    def _located(self, path: str = "") -> tuple[pafs.FileSystem, str]:
        filesystem, folder = self._opened
        return filesystem, posixpath.join(folder, path) if path else folder

    @cached_property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        if "://" not in self.root:
            return pafs.LocalFileSystem(), self.root
        filesystem, folder = pafs.FileSystem.from_uri(self.root)
        return filesystem, folder.rstrip("/")

    @contextmanager
    def _explained(self, done: str, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            lines = _without_secrets(str(error)).splitlines() or [type(error).__name__]
            happened = f"{self.place(path)} cannot be {done}: {lines[0][:300]}"
            raise CheckpointError(happened, remedy=_remedy(error)) from error


def _write_through(target: str, chunks: Iterable[Chunk]) -> None:
    part = f"{target}.part"
    try:
        with open(part, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError:
        # On a full disk what was written so far is in the way of everything else.
        if os.path.lexists(part):
            os.unlink(part)
        raise


def _sync(folder: str) -> None:
    """Make the names in a local folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _without_secrets(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://", text)


def _remedy(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number in NO_SPACE:
        return "free some space there, or name a place with more in train.checkpoint.path"
    if number in NO_RIGHT:
        return "give this user the right to write there, or name another place in train.checkpoint.path"
    return "see that the place exists and can be reached from every node, or name another in train.checkpoint.path"
