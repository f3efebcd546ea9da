"""Who may ask an endpoint, and how much: keys, their tenants, and the tenants' limits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple

from tidegate import keys
from tidegate.errors import StorageError
from tidegate.keys import Key, Keyring
from tidegate.serving.exchange import LOGGER, HttpError
from tidegate.serving.ledger import Rule
from tidegate.serving.quota import Allowance, Quota

POLL_S = 1.0
"""A key that was revoked works no longer than about so long."""
_ASK = [(b"www-authenticate", b"Bearer")]


@dataclass(frozen=True)
class Access:
    """`is_required`: only keys get in; without it a request that shows none does, too. `tenants`: their limits."""

    is_public: bool = False
    is_required: bool = False
    tenants: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rules(self) -> dict[str, Rule]:
        return {name: Rule(limit["rate"], limit["burst"], limit["concurrent"]) for name, limit in self.tenants.items()}


class Pass(NamedTuple):
    """A request that was let in: for whom, and what is given back when it ends."""

    tenant: str
    allowance: Allowance | None = None


class KeyWatch:
    """The keys as they are now: read again whenever their file has changed. One for each process."""

    def __init__(self) -> None:
        self.ring = Keyring(())
        self._stamp: object = None
        self._is_damaged = False

    def key_of(self, headers: Mapping[bytes, bytes], *, is_required: bool) -> Key | None:
        """The key that a request shows; None for none where none is needed. Raises HttpError 401."""
        shown = _bearer(headers)
        if shown is None:
            if is_required:
                message = "a key is needed: send the header Authorization: Bearer KEY"
                raise HttpError(HTTPStatus.UNAUTHORIZED, message, _ASK)
            return None
        key = self.ring.find(shown)
        if key is None:
            raise HttpError(HTTPStatus.UNAUTHORIZED, "this key is unknown, revoked or expired", _ASK)
        return key

    def refresh(self) -> None:
        """Reads the file. Where it cannot be read, the keys known before go on working: nobody else gets in."""
        try:
            stamp = keys.stamp()
            if stamp != self._stamp:
                self.ring, self._stamp = keys.read(), stamp
                self._is_damaged = False
        except (StorageError, OSError) as error:
            if not self._is_damaged:
                LOGGER.error("The keys cannot be read; those known before stay: %s", error)
            self._is_damaged = True

    async def run(self) -> None:
        while True:
            await asyncio.to_thread(self.refresh)
            await asyncio.sleep(POLL_S)


class Gate:
    """Lets requests for one endpoint in, or raises HttpError 401, 403 or 429."""

    def __init__(self, endpoint: str, watch: KeyWatch, quota: Quota) -> None:
        self._endpoint = endpoint
        self._watch = watch
        self._quota = quota
        self._access = Access(is_required=True)

    def set_access(self, access: Access) -> None:
        self._access = access
        self._quota.set_rules(access.rules())

    def check(self, headers: Mapping[bytes, bytes], scope: str = "predict") -> str:
        """`tenant_of` who asks."""
        return tenant_of(headers, self._watch, self._endpoint, self._access, scope)

    def enter(self, tenant: str) -> Pass | None:
        """Lets a request in at once, if that is possible without asking. Otherwise `wait`."""
        allowance = self._quota.limit(tenant)
        return Pass(tenant, allowance) if allowance is None or self._quota.take(allowance) else None

    async def wait(self, tenant: str) -> Pass:
        return Pass(tenant, await self._quota.wait(tenant))

    def leave(self, entered: Pass) -> None:
        """The request has ended."""
        if entered.allowance is not None:
            self._quota.give_back(entered.allowance)


def tenant_of(
    headers: Mapping[bytes, bytes], watch: KeyWatch, endpoint: str, access: Access, scope: str = "predict"
) -> str:
    """The tenant who asks; empty for somebody without a key where none is needed. Raises HttpError 401 or 403."""
    if access.is_public:
        return ""
    key = watch.key_of(headers, is_required=access.is_required)
    if key is None:
        return ""
    if not key.may(scope, endpoint):
        raise HttpError(HTTPStatus.FORBIDDEN, f"this key may not {scope} on endpoint {endpoint!r}")
    return key.tenant


def _bearer(headers: Mapping[bytes, bytes]) -> bytes | None:
    header = headers.get(b"authorization")
    if header is None:
        return None
    scheme, _, key = header.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else None
