"""Keys for endpoints: one JSON file under the home directory, of which servers keep a Keyring.

The text of a key is told once, to whoever made it. What is stored tells whether a text is a key, and not what it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from filelock import FileLock, Timeout
from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from tidegate import disk, settings
from tidegate.errors import ConflictError, NotFoundError, SpecError, StorageError, UnavailableError
from tidegate.spec.base import Name, Part

SCOPES = ("predict", "deploy", "admin")
"""What a key may be for; admin includes the others."""
LOCK_S = 30.0

_ID = re.compile(r"[0-9a-f]{8}")
_LIST = "`tidegate keys list` lists them"

Scope = Annotated[str, StringConstraints(pattern=f"^({'|'.join(SCOPES)})$")]
Utc = Annotated[AwareDatetime, AfterValidator(lambda when: when.astimezone(UTC))]


@dataclass(frozen=True)
class Key:
    """What is kept of a key. Without `endpoints` it is one for all of them; without `expires` it is one for good."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")]
    tenant: Name
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    endpoints: tuple[Name, ...]
    created: Utc
    expires: Utc | None
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = field(repr=False)

    # A release that knows of another restriction must not have it ignored by this one.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    @property
    def is_expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)

    def may(self, scope: str, endpoint: str) -> bool:
        """Whether it is a key for `scope` on that endpoint. Whether it has expired is not asked here."""
        return (scope in self.scopes or "admin" in self.scopes) and (not self.endpoints or endpoint in self.endpoints)


class _File(Part):
    format: Literal[1]
    keys: list[Key]


_KEY, _NAME = TypeAdapter(Key), TypeAdapter[str](Name)


class Keyring:
    """Keys by what is kept of their text. It never changes: when the file does, `read` makes another."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = {bytes.fromhex(key.digest): (key, key.expires.timestamp() if key.expires else inf) for key in keys}

    def find(self, text: str | bytes) -> Key | None:
        """The key of that text; None when there is none or it has expired."""
        # Lengths of time tell nothing here: who asks cannot choose the digest that is looked up.
        sent = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        found = self._keys.get(hashlib.sha256(sent).digest())
        return found[0] if found is not None and time.time() < found[1] else None


def create(
    tenant: str,
    *,
    scopes: Sequence[str] = ("predict",),
    endpoints: Sequence[str] = (),
    expires_in: timedelta | None = None,
) -> tuple[Key, str]:
    """A new key and its text, which nothing can tell again. Raises SpecError for what no key can have."""
    key, text = draft(tenant, scopes=scopes, endpoints=endpoints, expires_in=expires_in)
    return add(key), text


def draft(
    tenant: str, *, scopes: Sequence[str], endpoints: Sequence[str], expires_in: timedelta | None
) -> tuple[Key, str]:
    """A key that is kept nowhere yet, and its text: for `add`, which another machine may do. Raises SpecError."""
    _check_name(tenant, "tenant")
    for endpoint in _several(endpoints, "endpoints"):
        _check_name(endpoint, "endpoint")
    for scope in _several(scopes, "scopes"):
        if scope not in SCOPES:
            raise SpecError(f"scope {scope!r}", expected=f"one of {', '.join(SCOPES)}")
    if not scopes:
        raise SpecError("a key without scopes opens nothing", expected=f"some of {', '.join(SCOPES)}")
    id = secrets.token_hex(4)
    text = f"tg_{id}_{secrets.token_urlsafe(32)}"
    # A plain hash, unlike that of a password: nobody goes through 2**256 texts, however quick each one is to try.
    digest = hashlib.sha256(text.encode()).hexdigest()
    created = datetime.now(UTC)
    key = Key(
        id=id,
        tenant=tenant,
        scopes=tuple(dict.fromkeys(scopes)),
        endpoints=tuple(dict.fromkeys(endpoints)),
        created=created,
        expires=_end(created, expires_in),
        digest=digest,
    )
    return key, text


def add(key: Key) -> Key:
    """Keep a drafted key, from now on: this machine's clock counts. Raises ConflictError when its id is taken."""
    now = datetime.now(UTC)
    kept = replace(key, created=now, expires=_end(now, key.expires - key.created if key.expires else None))
    with _changed() as keys:
        if any(key.id == other.id for other in keys):
            raise ConflictError(f"there is a key {key.id} already, by chance", remedy="create the key again")
        keys.append(kept)
    return kept


def listed() -> list[Key]:
    """Every key that is not revoked, in the order they were made. Raises StorageError when they cannot be read."""
    return _read(_path())


def revoke(id: str) -> Key:
    """Take a key away; servers that look every few seconds refuse it then. Raises NotFoundError, which names others."""
    check_id(id)
    with _changed() as keys:
        for key in keys:
            if key.id == id:
                keys.remove(key)
                return key
        raise NotFoundError(f"no key {id!r}", expected=_choices(keys), remedy=_LIST)


def check_id(id: str) -> None:
    """Raises SpecError, which does not show what was given: it may be the text of a key."""
    if not _ID.fullmatch(id):
        raise SpecError("that is no key's id", expected="the 8 hex digits after tg_", remedy=_LIST)


def read() -> Keyring:
    """The keys there are now. Take `stamp` first, so that no change is missed between the two."""
    return Keyring(listed())


def stamp() -> object:
    """Something that is another whenever the file of keys is. Raises StorageError."""
    path = _path()
    with _readable(path):
        try:
            # Opened, not only looked at: on shared storage that is when other nodes' changes are seen.
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
        except FileNotFoundError:
            return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def to_json(key: Key) -> dict[str, Any]:
    made: dict[str, Any] = _KEY.dump_python(key, mode="json")
    return made


def from_json(told: Any) -> Key:
    """Raises ValueError for what is no key."""
    return _KEY.validate_json(json.dumps(told))


def _check_name(name: str, what: str) -> None:
    try:
        _NAME.validate_python(name, strict=True)
    except ValidationError:
        form = "lower-case letters, digits, '-' and '_', at most 63, with a letter or digit at both ends"
        raise SpecError(f"{what} {name!r}", expected=form) from None


def _several(names: Sequence[str], what: str) -> Sequence[str]:
    if isinstance(names, str):
        raise SpecError(f"{what} {names!r}", expected=f"a list of {what}", remedy=f"write [{names!r}]")
    return names


def _end(begin: datetime, lasts: timedelta | None) -> datetime | None:
    if lasts is None:
        return None
    if lasts <= timedelta():
        raise SpecError(f"a key that expires in {lasts} never opens anything", expected="a time to come")
    try:
        return begin + lasts
    except OverflowError:
        raise SpecError(f"a key that expires in {lasts.days} days", expected="a year before 10000") from None


def _choices(keys: list[Key]) -> str:
    shown = ", ".join(f"{key.id} ({key.tenant})" for key in keys[-10:])
    return f"one of {shown}" + (f" and {len(keys) - 10} older" if len(keys) > 10 else "") if keys else ""


@contextmanager
def _changed() -> Iterator[list[Key]]:
    """The keys, to be changed while every other process waits; kept unless an error comes of it."""
    path = _path()
    with disk.explained():
        lock = FileLock(path.with_suffix(".lock"), timeout=LOCK_S)
        try:
            lock.acquire()
        except Timeout as error:
            waited = f"another process kept {lock.lock_file} for {LOCK_S:g} s"
            raise UnavailableError(waited, remedy="wait for it or end it, then try again") from error
        try:
            keys = _read(path)
            yield keys
            _write(path, keys)
        finally:
            lock.release()


def _read(path: Path) -> list[Key]:
    with _readable(path):
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return []
    try:
        keys = _File.model_validate_json(text).keys
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # The place and what is wrong there, not what was found: it may be a digest.
        place = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"{place}: {first['msg']}" if place else first["msg"]) from None
    except OverflowError as error:
        raise _damaged(path, str(error)) from None
    if len({key.id for key in keys}) < len(keys) or len({key.digest for key in keys}) < len(keys):
        raise _damaged(path, "a key stands in it twice")
    return keys


def _write(path: Path, keys: list[Key]) -> None:
    disk.write_whole(path, (_File(format=1, keys=keys).model_dump_json(indent=1) + "\n").encode())


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "give this user the right to read it; without it no key is known"
        raise StorageError(f"{path} cannot be read: {error.strerror}", remedy=remedy) from error


def _damaged(path: Path, why: str) -> StorageError:
    remedy = "restore it from a backup, or delete it and make new keys; until then no key can be made or revoked"
    return StorageError(f"the file of keys {path} is damaged: {why}", remedy=remedy)


def _path() -> Path:
    return settings.home() / "keys.json"
