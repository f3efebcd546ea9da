"""The demo on the kinds of cluster that tests/e2e leaves out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from grounds import in_a_program, on_a_persons_cluster
from stranger import Stranger

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(("token", "haproxy"), [(True, True), (True, False), (False, True)])
def test_the_demo_in_a_program(new_stranger: Callable[[], Stranger], token: bool, haproxy: bool) -> None:
    in_a_program(new_stranger(), token=token, haproxy=haproxy)


@pytest.mark.parametrize(("token", "haproxy"), [(True, False), (False, True), (False, False)])
def test_the_demo_on_a_persons_cluster(new_stranger: Callable[[], Stranger], token: bool, haproxy: bool) -> None:
    on_a_persons_cluster(new_stranger(), token=token, haproxy=haproxy)
