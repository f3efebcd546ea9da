"""MLflow's store: a SQLite file under the home directory unless MLFLOW_TRACKING_URI names another.

`attempt` is the one way in. MLflow takes a second to import, so it is imported inside functions.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from tidegate import settings
from tidegate.errors import UnavailableError

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

PATIENCE_S = 10.0
"""How long a busy store is tried again. MLflow itself waits up to 20 s on a locked file, so a call may take 30 s."""
LOCK_S = 60.0
PAGE = 1000
FULL = "database or disk is full"
"""SQLite's words."""


def store_uri() -> str:
    """Where runs and versions are kept: MLFLOW_TRACKING_URI, or the SQLite file under home."""
    uri = settings.TRACKING_URI.text()
    if uri:
        return uri
    file = settings.home() / "mlflow.db"
    if any(mark in str(file) for mark in "%?#"):
        raise UnavailableError(f"no database can be kept in {file.parent}", expected="a path without %, ? and #")
    return f"sqlite:///{file}"


def digest() -> str:
    """Tells one store from another without telling where it is."""
    return hashlib.sha256(store_uri().encode()).hexdigest()


def attempt(action: Callable[[MlflowClient], T]) -> T:
    """The result of `action`, tried again for up to `PATIENCE_S` while the store is busy.

    `action` must be safe to repeat after it failed. Raises UnavailableError when the store stays busy or refuses.
    """
    load_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return action(_client())
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            if not _is_busy(error) or time.monotonic() >= deadline:
                raise _unavailable(error) from error
        time.sleep(0.1)


@contextmanager
def exclusive() -> Iterator[None]:
    """Keep every other process of this machine from changing the store meanwhile. Not reentrant."""
    with _locked(_lock_base().with_suffix(".write.lock")):
        yield


def pages(search: Callable[..., Any], **query: Any) -> Iterator[Any]:
    """Every result of one of the MLflow client's paginated searches."""
    token: str | None = None
    while True:
        page = search(max_results=PAGE, page_token=token, **query)
        yield from page
        token = page.token
        if not token:
            return


def runs_folder() -> str | None:
    """Where the files of runs go; a server decides that itself, a bare database would use the working directory."""
    if urlsplit(store_uri()).scheme in ("http", "https"):
        return None
    return (settings.home() / "artifacts" / "_runs").as_uri()


def load_mlflow() -> None:
    # Read by MLflow when it is imported. Without the second one an absent server takes four minutes to notice.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    import mlflow  # noqa: F401

    # It logs a traceback for every busy moment; `attempt` retries those and reports the last one in a sentence.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _client() -> MlflowClient:
    uri = store_uri()
    file = sqlite_file(uri)
    if file is not None and not _is_created(file):
        _create(file)
    return _open(uri)


@lru_cache(maxsize=8)
def _open(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def sqlite_file(uri: str) -> Path | None:
    """The file of a store that is one; None for a server or a database in memory."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path).absolute() if uri.startswith("sqlite:///") and path not in ("", ":memory:") else None


def _is_created(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _create(file: Path) -> None:
    """Make the database beside its place and move it there whole: MLflow never recovers from a half-made one."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file.with_suffix(".create.lock")):
        if _is_created(file):
            return
        mark = file.with_suffix(".made")
        _refuse_lost(mark, file)
        draft = file.with_suffix(".new")
        draft.unlink(missing_ok=True)
        store = SqlAlchemyStore(f"sqlite:///{draft}", runs_folder())
        store.engine.dispose()
        draft.replace(file)
        mark.touch()


def _refuse_lost(mark: Path, file: Path) -> None:
    """Raise UnavailableError when there was a database already: an empty one in its place would hide what it knew."""
    if mark.exists():
        raise UnavailableError(
            f"{file} is gone or empty, and with it what it knew of runs and versions",
            remedy=f"restore it from a backup, or delete {mark} to begin with an empty one",
        )


def _lock_base() -> Path:
    return sqlite_file(store_uri()) or settings.home() / "mlflow.server"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path, timeout=LOCK_S)
    try:
        lock.acquire()
    except Timeout as error:
        waited = f"another process kept {path} for {LOCK_S:g} s"
        raise UnavailableError(waited, remedy="wait for it or end it, then try again") from error
    try:
        yield
    finally:
        lock.release()


def _is_busy(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException):
        return bool(error.error_code == "TEMPORARILY_UNAVAILABLE")
    return isinstance(error, OperationalError)


def _unavailable(error: Exception) -> UnavailableError:
    uri = store_uri()
    place = sqlite_file(uri) or f"{urlsplit(uri).scheme}://{urlsplit(uri).hostname or ''}"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # Neither may show the URI's password.
    reason = re.sub(r"://[^/@\s]+@", "://", reason)
    remedy = "see which process holds it, then try again" if _is_busy(error) else ""
    if FULL in reason:
        remedy = "free some space there, then try again"
    return UnavailableError(f"the registry at {place} cannot be used: {reason[:300]}", remedy=remedy)
