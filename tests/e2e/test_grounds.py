"""The demo on two kinds of cluster that are not `tidegate up`'s. The other six are in tests/elastic."""

from __future__ import annotations

import pytest

from grounds import in_a_program, on_a_persons_cluster
from stranger import Stranger

pytestmark = pytest.mark.cluster


def test_the_demo_in_a_program_on_an_open_cluster_without_haproxy(stranger: Stranger) -> None:
    in_a_program(stranger, token=False, haproxy=False)


def test_the_demo_on_a_persons_cluster_with_a_token_and_haproxy(stranger: Stranger) -> None:
    on_a_persons_cluster(stranger, token=True, haproxy=True)
