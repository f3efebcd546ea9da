"""Talking to the other workers of a group, and what it means when one does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


class PeerLostError(Exception):
    """Another worker died in the middle of an exchange. Ray restarts the group; it is no fault of this worker."""


@contextmanager
def exchange() -> Iterator[None]:
    """Around a collective of torch.distributed, whose errors are all of one kind: somebody is gone.

    Ray takes the group of those that are left down, from another thread than the loop's: any error may come of it.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) or not dist.is_initialized():
            raise PeerLostError(str(error)) from error
        raise
