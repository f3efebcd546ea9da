"""The gate of an endpoint with real keys in a real file, and limits that are granted by a real ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tidegate import keys
from tidegate.serving.exchange import HttpError
from tidegate.serving.gate import Access, Gate, KeyWatch, Pass
from tidegate.serving.ledger import Account, Grant, Ledger
from tidegate.serving.quota import Asks, Quota

WAIT_S = 10.0


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))


class Replica:
    """A gate as a replica has it. `fails` makes the ledger unreachable."""

    def __init__(self, access: Access, ledger: Ledger | None = None, name: str = "a") -> None:
        self.fails = False
        self._ledger, self._name = ledger or Ledger(), name
        self.watch = KeyWatch()
        self.watch.refresh()
        self.quota = Quota("digits", self._renew)
        self.gate = Gate("digits", self.watch, self.quota)
        self.gate.set_access(access)

    async def _renew(self, asks: Asks) -> dict[Account, Grant]:
        await asyncio.sleep(0)
        if self.fails:
            raise ConnectionError
        return self._ledger.renew(time.monotonic(), self._name, asks)

    async def enter(self, tenant: str) -> Pass:
        return self.gate.enter(tenant) or await self.gate.wait(tenant)

    async def admitted(self, tenant: str, times: int) -> list[Pass]:
        """Those of so many requests that were let in."""
        outcomes = await asyncio.gather(*(self.enter(tenant) for _ in range(times)), return_exceptions=True)
        for outcome in outcomes:
            if not isinstance(outcome, Pass):
                assert isinstance(outcome, HttpError)
                assert outcome.status == HTTPStatus.TOO_MANY_REQUESTS
                assert int(dict(outcome.headers)[b"retry-after"]) >= 1
        return [outcome for outcome in outcomes if isinstance(outcome, Pass)]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), WAIT_S)

    asyncio.run(bounded())


def limited(**limit: Any) -> Access:
    return Access(is_required=True, tenants={"acme": {"rate": None, "burst": 1.0, "concurrent": None, **limit}})


def asking(key: str | None) -> dict[bytes, bytes]:
    return {} if key is None else {b"authorization": f"Bearer {key}".encode()}


def status(gate: Gate, key: str | None, scope: str = "predict") -> int:
    try:
        gate.check(asking(key), scope)
    except HttpError as error:
        return int(error.status)
    return 200


@pytest.fixture(name="quiet")
def _quiet() -> Iterator[Callable[[Access], Gate]]:
    """A gate whose keys are asked for and whose limits are not."""
    with asyncio.Runner() as runner:

        async def make(access: Access) -> Gate:
            return Replica(access).gate

        yield lambda access: runner.run(make(access))


def test_who_gets_in(quiet: Callable[[Access], Gate]) -> None:
    _, good = keys.create("acme", endpoints=["digits"])
    _, elsewhere = keys.create("acme", endpoints=["other"])
    _, chief = keys.create("boss", scopes=["admin"])
    _, deployer = keys.create("acme", scopes=["deploy"])
    _, short = keys.create("acme", expires_in=timedelta(microseconds=1))
    revoked, gone = keys.create("acme")
    keys.revoke(revoked.id)
    closed = quiet(Access(is_required=True))
    found = {name: status(closed, key) for name, key in locals().items() if isinstance(key, str)}
    assert found == {"good": 200, "elsewhere": 403, "chief": 200, "deployer": 403, "short": 401, "gone": 401}
    assert [status(closed, key) for key in (None, "", "tg_rubbish", good + "x")] == [401] * 4
    assert status(closed, good, "deploy") == 403
    assert closed.check(asking(good)) == "acme"
    # Where none is needed, a wrong one is still told.
    optional = quiet(Access())
    assert [status(optional, key) for key in (None, good, gone)] == [200, 200, 401]
    public = quiet(Access(is_public=True))
    assert [status(public, key) for key in (None, good, gone)] == [200, 200, 200]


def test_before_it_knows_who_may_ask_nobody_does() -> None:
    async def test() -> None:
        gate = Gate("digits", KeyWatch(), Quota("digits", Replica(Access())._renew))
        assert status(gate, None) == 401

    run(test)


def test_a_revoked_key_stops_and_a_damaged_file_changes_nothing(tmp_path: Path) -> None:
    key, text = keys.create("acme")
    watch = KeyWatch()
    watch.refresh()
    assert watch.ring.find(text) == key
    whole = (tmp_path / "keys.json").read_bytes()
    (tmp_path / "keys.json").write_bytes(whole[:20])
    watch.refresh()
    assert watch.ring.find(text) == key
    (tmp_path / "keys.json").write_bytes(whole)
    watch.refresh()
    keys.revoke(key.id)
    watch.refresh()
    assert watch.ring.find(text) is None


def test_a_tenant_without_a_limit_waits_for_nothing() -> None:
    async def test() -> None:
        replica = Replica(limited(rate=1.0))
        assert len(await replica.admitted("other", 500)) == 500

    run(test)


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_burst_is_what_all_replicas_let_in_at_once(replicas: int) -> None:
    async def test() -> None:
        ledger = Ledger()
        group = [Replica(limited(rate=0.001, burst=20.0), ledger, f"r{number}") for number in range(replicas)]
        chores = [asyncio.create_task(replica.quota.run()) for replica in group]
        admitted = [await replica.admitted("acme", 40) for replica in group]
        assert sum(map(len, admitted)) == 20
        for chore in chores:
            chore.cancel()

    run(test)


def test_who_waits_is_not_overtaken() -> None:
    """Else somebody far below the limit is refused while others take what was granted for it."""

    async def test() -> None:
        replica = Replica(limited(rate=1000.0), OneByOne())
        chores = [asyncio.create_task(replica.quota.run())]
        chores += [asyncio.create_task(newcomers(replica)) for _ in range(3)]
        for _ in range(3):
            assert isinstance(await replica.gate.wait("acme"), Pass)
        for chore in chores:
            chore.cancel()

    async def newcomers(replica: Replica) -> None:
        while True:
            replica.gate.enter("acme")
            await asyncio.sleep(0)

    run(test)


class OneByOne(Ledger):
    """Grants a single token whenever it is asked."""

    def renew(self, now: float, replica: str, asks: Asks) -> dict[Account, Grant]:
        return {account: Grant(tokens=1, slots=0, wait_s=0.0, spare=0, replicas=1) for account in asks}


def test_slots_are_shared_and_come_back() -> None:
    async def test() -> None:
        ledger = Ledger()
        one, two = (Replica(limited(concurrent=3), ledger, name) for name in "ab")
        chores = [asyncio.create_task(replica.quota.run()) for replica in (one, two)]
        held = await one.admitted("acme", 5)
        assert len(held) == 3
        assert await two.admitted("acme", 2) == []
        for entered in held:
            one.gate.leave(entered)
        assert len(await two.admitted("acme", 5)) == 3
        for chore in chores:
            chore.cancel()

    run(test)


def test_without_the_ledger_a_replica_grants_its_own_part(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        ledger = Ledger()
        one, two = (Replica(limited(rate=0.001, burst=10.0), ledger, name) for name in "ab")
        chores = [asyncio.create_task(replica.quota.run()) for replica in (one, two)]
        assert len(await two.admitted("acme", 1)) == 1
        assert len(await one.admitted("acme", 1)) == 1
        one.fails = True
        # It has heard that there are two.
        # What it asked for ahead may be left from before.
        assert len(await one.admitted("acme", 40)) in (5, 6)
        assert caplog.text.count("kept by each replica") == 1
        for chore in chores:
            chore.cancel()

    run(test)
