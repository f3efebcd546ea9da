"""Which errors of an exchange mean that somebody else is gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from tidegate.training.peers import PeerLostError, exchange


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_what_a_collective_raises_means_a_lost_peer() -> None:
    with pytest.raises(PeerLostError, match="Connection closed by peer"), exchange():
        raise RuntimeError("Connection closed by peer")


def test_a_group_that_is_taken_down_between_two_exchanges_means_a_lost_peer(group: None) -> None:
    vector = torch.ones(3)
    with exchange():
        dist.all_reduce(vector)
    dist.destroy_process_group()
    with pytest.raises(PeerLostError, match="process group"), exchange():
        dist.all_reduce(vector)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, ValueError])
def test_what_is_wrong_with_this_worker_stays_its_own(group: None, kind: type[Exception]) -> None:
    with pytest.raises(kind), exchange():
        raise kind("here")
