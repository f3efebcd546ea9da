"""Folders of files: one row a file, and its class is the folder that it lies in."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.fs as pafs

from tidegate.errors import DataError

CONTENT = {"images": "image", "audio": "audio", "text": "text"}
"""The column that holds a file's bytes, by the format of the source."""
LABEL, PATH = "label", "path"
FILES_A_TABLE = 256
READERS = 16
"""Files that are read at once: from an object store, a small file is mostly waiting."""


def names(kind: str) -> list[str]:
    """The columns of such a source."""
    return [CONTENT[kind], LABEL, PATH]


def check(root: str, paths: Sequence[str]) -> None:
    """Raise DataError unless every file lies in the folder of a class, and all of them equally deep."""
    depths = [len(_relative(root, path)) for path in paths]
    advice = f"move it, or name the files by a pattern such as {root or '.'}/*/*{posixpath.splitext(paths[0])[1]}"
    if 1 in depths:
        raise DataError(
            f"{paths[depths.index(1)]} lies in no class's folder",
            expected="a folder for each class, with the files of that class in it",
            remedy=advice,
        )
    if len(set(depths)) > 1:
        deep, flat = (paths[depths.index(end(depths))] for end in (max, min))
        raise DataError(
            f"{deep} lies deeper than {flat}",
            expected="one level of folders that name the classes, all equally deep",
            remedy=advice,
        )


def has_classes(root: str, paths: Sequence[str]) -> bool:
    """Whether every file lies in a folder that can be its class."""
    return all(len(_relative(root, path)) > 1 for path in paths)


def label(path: str) -> str:
    """The class of a file: the name of its folder."""
    return posixpath.basename(posixpath.dirname(path))


def tables(
    filesystem: pafs.FileSystem, root: str, paths: Sequence[str], kind: str, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """The rows of these files, in order; a file's content stays bytes, whose meaning the spec decides."""
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(paths), FILES_A_TABLE):
            part = paths[start : start + FILES_A_TABLE]
            values: dict[str, Sequence[str | bytes]]
            values = {LABEL: [label(path) for path in part], PATH: ["/".join(_relative(root, path)) for path in part]}
            if CONTENT[kind] in columns:
                values[CONTENT[kind]] = list(pool.map(partial(_content, filesystem), part))
            yield pa.table({name: values[name] for name in names(kind) if name in columns})


def _content(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def _relative(root: str, path: str) -> list[str]:
    return [part for part in path[len(root) :].split("/") if part]
