"""Files that are whole or not there, and what to say when a disk does not take what is to be kept."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tidegate import settings
from tidegate.errors import StorageError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_whole(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one, never a part, also after a crash. Only its owner may read it."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def explained() -> Iterator[None]:
    """Raise StorageError for a disk that is full or may not be written to; every other error as it is."""
    try:
        yield
    except Exception as error:
        if (found := refusal(error)) is not None:
            raise found from error
        raise


def refusal(error: BaseException) -> StorageError | None:
    """What a disk's refusal means for a person, also one that Ray brought from another process."""
    cause = getattr(error, "cause", None) or error
    number = getattr(cause, "errno", None) if isinstance(cause, OSError) else None
    where = f"{cause.filename} " if isinstance(cause, OSError) and cause.filename else "a file "
    happened = f"{where}cannot be written: {os.strerror(number or 0)}"
    if number in NO_SPACE:
        return StorageError(
            happened,
            remedy=f"free some space (`df {settings.home()}`) and repeat the command; nothing half-written is used",
        )
    if number in NO_RIGHT:
        return StorageError(happened, remedy="give this user the right to write there, or set TIDEGATE_HOME")
    return None
