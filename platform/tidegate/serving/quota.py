"""A replica's side of its tenants' limits: what it was granted, and asking for more in time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from tidegate.serving.exchange import LOGGER, HttpError
from tidegate.serving.ledger import Account, Ask, Grant, Ledger, Rule

AHEAD_S = 0.5
"""Tokens are asked for so long before they are needed."""
PATIENCE_S = 0.1
"""How long a request waits for a slot that another replica may be about to give back; longer if the ledger does."""
MAX_WAITING = 512
HEARTBEAT_S = 1.0
_PAUSE_S = 0.02
_ANSWER_S = 1.0
_COMPLAIN_S = 60.0

Asks = Mapping[Account, tuple[Rule, Ask]]
Renew = Callable[[Asks], Awaitable[dict[Account, Grant]]]


class Allowance:
    """What this replica holds of one tenant's limit."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.waiting = 0
        self.tokens = 0
        self.idle = 0
        self.used = 0
        self.refused_until = 0.0
        self.spare = 0
        self.replicas = 1
        self._arrivals = 0
        self._per_s = 0.0
        self._counted = time.monotonic()

    def arrived(self) -> None:
        self._arrivals += 1

    def take(self, after: int = 0) -> bool:
        """Lets a request in if what is held allows it and as many others."""
        if (self.rule.rate is not None and self.tokens <= after) or (
            self.rule.concurrent is not None and self.idle <= after
        ):
            return False
        if self.rule.rate is not None:
            self.tokens -= 1
        if self.rule.concurrent is not None:
            self.idle -= 1
            self.used += 1
        return True

    def gave_back(self) -> None:
        """A request that was let in has ended."""
        if self.rule.concurrent is not None:
            self.used -= 1
            self.idle += 1

    @property
    def is_low(self) -> bool:
        """Whether more should be asked for now, though nobody waits yet."""
        return self.rule.rate is not None and self.tokens < self._ahead() / 2 and not self.is_refused

    @property
    def is_refused(self) -> bool:
        return time.monotonic() < self.refused_until

    @property
    def is_scarce(self) -> bool:
        """Whether slots that nobody uses here may be wanted elsewhere."""
        return self.rule.concurrent is not None and self.spare < 2 * self.replicas

    def _ahead(self) -> int:
        return math.ceil(self._per_s * AHEAD_S)

    def ask(self) -> Ask:
        """What to ask for. Tokens and slots that are not needed are let go with it."""
        self._estimate()
        if self._per_s or self.waiting:
            # As many again as wait: until the pace is known, what is held doubles from one answer to the next.
            tokens = max(0, self.waiting + max(self._ahead(), self.waiting) - self.tokens)
        else:
            tokens, self.tokens = -self.tokens, 0
        self.idle = min(self.idle, self.waiting if self.is_scarce else max(self.waiting, self._ahead()))
        return Ask(tokens, self.waiting - min(self.waiting, self.idle), self.used + self.idle)

    def _estimate(self) -> None:
        now = time.monotonic()
        if now - self._counted >= HEARTBEAT_S / 4:
            fresh = self._arrivals / (now - self._counted)
            self._per_s = max(fresh, (self._per_s + fresh) / 2) if fresh or self._per_s > 1 else 0.0
            self._arrivals, self._counted = 0, now

    def granted(self, grant: Grant) -> None:
        self.tokens += grant.tokens
        self.idle += grant.slots
        self.spare, self.replicas = grant.spare, grant.replicas
        if grant.wait_s and self.tokens < 1:
            self.refused_until = time.monotonic() + max(grant.wait_s, _PAUSE_S)


class Quota:
    """The limits of one endpoint's tenants. All calls come from one event loop.

    `renew` asks the ledger of all replicas. While that does not answer, each replica grants its own part.
    """

    def __init__(self, endpoint: str, renew: Renew) -> None:
        self._endpoint = endpoint
        self._renew = renew
        self._allowances: dict[str, Allowance] = {}
        self._alone = Ledger()
        self._news = asyncio.Event()
        self._granted = asyncio.Condition()
        self._complained = -math.inf
        self._rounds = 0

    def set_rules(self, rules: Mapping[str, Rule]) -> None:
        for tenant in self._allowances.keys() - rules.keys():
            del self._allowances[tenant]
        for tenant, rule in rules.items():
            if rule.rate is None and rule.concurrent is None:
                self._allowances.pop(tenant, None)
            elif tenant in self._allowances:
                self._allowances[tenant].rule = rule
            else:
                self._allowances[tenant] = Allowance(rule)
        self._news.set()

    def limit(self, tenant: str) -> Allowance | None:
        """What bounds the tenant; None if nothing does."""
        return self._allowances.get(tenant)

    def take(self, allowance: Allowance) -> bool:
        """Lets a request in, or not: then it has to `wait`. Raises HttpError 429."""
        allowance.arrived()
        # What was granted is for those who wait: with newcomers before them they would wait until they are refused.
        if allowance.take(after=allowance.waiting):
            if allowance.is_low:
                self._news.set()
            return True
        if allowance.is_refused:
            raise _too_many(allowance.refused_until - time.monotonic())
        return False

    async def wait(self, tenant: str) -> Allowance | None:
        """For a request that `take` did not let in at once. Raises HttpError 429."""
        until, rounds = time.monotonic() + PATIENCE_S, self._rounds
        allowance = self._allowances.get(tenant)
        if allowance is not None and allowance.waiting >= MAX_WAITING:
            raise _too_many(1.0)
        while allowance is not None and not allowance.take():
            if allowance.is_refused:
                raise _too_many(allowance.refused_until - time.monotonic())
            # The first answer that comes may be to a question from before this request.
            if time.monotonic() > until and self._rounds > rounds + 1:
                raise _too_many(1.0)
            allowance.waiting += 1
            self._news.set()
            try:
                async with self._granted:
                    await self._granted.wait()
            finally:
                allowance.waiting -= 1
            allowance = self._allowances.get(tenant)
        return allowance

    def give_back(self, allowance: Allowance) -> None:
        allowance.gave_back()
        if allowance.is_scarce:
            self._news.set()

    async def run(self) -> None:
        """Renews what is held once a second, and as soon as more is needed."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), HEARTBEAT_S)
            self._news.clear()
            if self._allowances:
                await self._round()
            # What else arrives meanwhile is asked for in one call.
            await asyncio.sleep(_PAUSE_S if any(a.waiting for a in self._allowances.values()) else _PAUSE_S / 10)

    async def _round(self) -> None:
        asked = dict(self._allowances)
        asks = {(self._endpoint, tenant): (allowance.rule, allowance.ask()) for tenant, allowance in asked.items()}
        for (_, tenant), grant in (await self._grants(asks)).items():
            asked[tenant].granted(grant)
        self._rounds += 1
        async with self._granted:
            self._granted.notify_all()

    async def _grants(self, asks: Asks) -> dict[Account, Grant]:
        try:
            return await asyncio.wait_for(self._renew(asks), _ANSWER_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, requests go on
            if time.monotonic() - self._complained > _COMPLAIN_S:
                self._complained = time.monotonic()
                LOGGER.warning("The limits of tenants are kept by each replica for itself: %r", error)
        mine = {
            account: (rule.divided(self._allowances[account[1]].replicas), ask)
            for account, (rule, ask) in asks.items()
            if account[1] in self._allowances
        }
        return self._alone.renew(time.monotonic(), "", mine)


def _too_many(wait_s: float) -> HttpError:
    seconds = max(1, math.ceil(wait_s))
    return HttpError(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"more requests than this key's tenant may send; try again in {seconds} s",
        [(b"retry-after", str(seconds).encode())],
    )
