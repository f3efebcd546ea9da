"""Which errors of an exchange mean that somebody else is gone."""

from __future__ import annotations

import pytest
import torch

from tidegate.training.peers import PeerLostError, exchange


def test_what_a_collective_raises_means_a_lost_peer() -> None:
    with pytest.raises(PeerLostError, match="Connection closed by peer"), exchange():
        raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, ValueError])
def test_what_is_wrong_with_this_worker_stays_its_own(kind: type[Exception]) -> None:
    with pytest.raises(kind), exchange():
        raise kind("here")
