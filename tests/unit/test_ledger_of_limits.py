"""The ledger of tenants' limits: never more than the rule allows, whatever replicas ask, and no less than it could."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.serving.ledger import FORGET_S, Ask, Grant, Ledger, Rule

ACCOUNT = ("digits", "acme")


def renew(ledger: Ledger, now: float, replica: str, rule: Rule, ask: Ask) -> Grant:
    return ledger.renew(now, replica, {ACCOUNT: (rule, ask)})[ACCOUNT]


ASKS = st.lists(
    st.tuples(st.floats(0, 2), st.sampled_from("abc"), st.integers(-5, 40)),
    max_size=60,
)


@given(st.floats(0.1, 500), st.floats(1, 50), ASKS)
def test_no_more_tokens_than_the_rate_and_the_burst(rate: float, burst: float, asks: list[Any]) -> None:
    ledger, now, out = Ledger(), 0.0, 0
    for pause, replica, wanted in asks:
        now += pause
        # Nobody gives back what it does not have.
        wanted = max(wanted, -out)
        grant = renew(ledger, now, replica, Rule(rate, burst), Ask(wanted, 0, 0))
        assert 0 <= grant.tokens <= max(0, wanted)
        out += grant.tokens + min(0, wanted)
        assert out <= burst + rate * now + 1e-6
        assert (grant.wait_s > 0) == (grant.tokens < max(0, wanted))


@given(st.floats(1, 500), st.floats(1, 50), st.lists(st.integers(1, 30), min_size=1, max_size=30))
def test_the_whole_rate_is_given_to_who_asks_often(rate: float, burst: float, wants: list[int]) -> None:
    ledger, now, out = Ledger(), 0.0, 0
    for wanted in wants:
        grant = renew(ledger, now, "a", Rule(rate, burst), Ask(wanted, 0, 0))
        out += grant.tokens
        if grant.tokens < wanted:
            assert out == int(burst + rate * now + 1e-9) or now == 0.0
            # Told when the next one comes: then it is there.
            assert renew(ledger, now + grant.wait_s + 1e-9, "a", Rule(rate, burst), Ask(1, 0, 0)).tokens == 1
            return


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 6), st.integers(0, 6)), max_size=60),
)
def test_never_more_slots_than_may_be_under_way(concurrent: int, steps: list[tuple[str, int, int]]) -> None:
    ledger, held = Ledger(), dict.fromkeys("abcd", 0)
    for number, (replica, gives_back, wanted) in enumerate(steps):
        held[replica] -= min(gives_back, held[replica])
        grant = renew(ledger, number * 0.01, replica, Rule(concurrent=concurrent), Ask(0, wanted, held[replica]))
        held[replica] += grant.slots
        assert sum(held.values()) <= concurrent
        assert grant.spare == concurrent - sum(held.values())
        assert grant.slots == wanted or grant.spare == 0


def test_a_replica_that_is_gone_holds_nothing() -> None:
    ledger, rule = Ledger(), Rule(concurrent=2)
    assert renew(ledger, 0.0, "a", rule, Ask(0, 2, 0)).slots == 2
    assert renew(ledger, FORGET_S, "b", rule, Ask(0, 1, 0)).slots == 0
    assert renew(ledger, FORGET_S + 0.1, "b", rule, Ask(0, 2, 0)) == Grant(0, 2, 0.0, 0, 1)


def test_a_new_ledger_believes_what_replicas_hold() -> None:
    """It was lost, and its replicas were not."""
    ledger, rule = Ledger(), Rule(concurrent=4)
    assert renew(ledger, 0.0, "a", rule, Ask(0, 0, 3)).slots == 0
    assert renew(ledger, 0.1, "b", rule, Ask(0, 3, 0)).slots == 1


@pytest.mark.parametrize("replicas", [1, 2, 3, 50])
def test_the_parts_of_a_rule_are_no_more_than_the_rule(replicas: int) -> None:
    part = Rule(90.0, 9.0, 6).divided(replicas)
    assert part.rate is not None
    assert part.rate * replicas == pytest.approx(90.0)
    assert part.burst == max(1.0, 9.0 / replicas)
    assert part.concurrent == max(1, 6 // replicas)
    assert Rule().divided(replicas) == Rule()
