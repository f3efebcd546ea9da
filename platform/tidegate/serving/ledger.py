"""How much each tenant may still ask, over all replicas: a bucket of tokens for its rate, slots for its concurrency.

Pure arithmetic; times are seconds of one clock. Replicas take tokens and slots in advance, a tenth of a second's worth,
so that a request needs no call to be let in; what they say of the slots they hold is believed, so that a ledger that
was lost is right again once each replica has renewed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

FORGET_S = 5.0
"""A replica that has not renewed for so long holds nothing any more."""

Account = tuple[str, str]
"""Endpoint and tenant."""


class Rule(NamedTuple):
    """What a tenant may ask of it: requests a second, `burst` of them at once, so many under way. None: all."""

    rate: float | None = None
    burst: float = 1.0
    concurrent: int | None = None

    def divided(self, replicas: int) -> Rule:
        """The part of one of so many replicas that cannot agree with the others."""
        if replicas <= 1:
            return self
        return Rule(
            self.rate / replicas if self.rate else None,
            max(1.0, self.burst / replicas),
            max(1, self.concurrent // replicas) if self.concurrent else None,
        )


class Ask(NamedTuple):
    """What a replica wants of an account: tokens (negative gives some back) and slots, beside those it holds."""

    tokens: int
    slots: int
    held: int


class Grant(NamedTuple):
    """What it gets. `wait_s`: when the next token comes, 0 when all asked for were given."""

    tokens: int
    slots: int
    wait_s: float
    spare: int
    """Slots that nobody holds after this."""
    replicas: int


@dataclass
class _State:
    tokens: float
    filled: float
    held: dict[str, int] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)


class Ledger:
    """What is left of every account."""

    def __init__(self) -> None:
        self._states: dict[Account, _State] = {}
        self._rules: dict[Account, Rule] = defaultdict(Rule)

    def renew(self, now: float, replica: str, asks: Mapping[Account, tuple[Rule, Ask]]) -> dict[Account, Grant]:
        """Answers what a replica asks, and takes note of what it holds."""
        return {account: self._grant(now, replica, account, rule, ask) for account, (rule, ask) in asks.items()}

    def _grant(self, now: float, replica: str, account: Account, rule: Rule, ask: Ask) -> Grant:
        state = self._states.get(account)
        if state is None:
            state = self._states[account] = _State(rule.burst, now)
        for gone in [name for name, seen in state.seen.items() if now - seen > FORGET_S]:
            del state.seen[gone]
            state.held.pop(gone, None)
        state.seen[replica] = now
        tokens, wait_s = _tokens(state, now, rule, ask.tokens)
        others = sum(held for name, held in state.held.items() if name != replica)
        free = math.inf if rule.concurrent is None else rule.concurrent - others - ask.held
        slots = int(max(0, min(ask.slots, free)))
        state.held[replica] = ask.held + slots
        spare = 0 if free is math.inf else int(max(0, free - slots))
        return Grant(tokens, slots, wait_s, spare, len(state.seen))


def _tokens(state: _State, now: float, rule: Rule, wanted: int) -> tuple[int, float]:
    if rule.rate is None:
        return max(0, wanted), 0.0
    state.tokens = min(rule.burst, state.tokens + (now - state.filled) * rule.rate)
    state.filled = now
    if wanted <= 0:
        state.tokens = min(rule.burst, state.tokens - wanted)
        return 0, 0.0
    given = min(wanted, int(state.tokens))
    state.tokens -= given
    return given, 0.0 if given == wanted else (1 - state.tokens % 1) / rule.rate
