"""The ledger of all replicas' tenants, as one actor of the cluster. It keeps nothing: replicas say what they hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import ray

from tidegate.serving.ledger import Account, Ask, Grant, Ledger, Rule
from tidegate.serving.quota import Asks

NAME = "tidegate-ledger"
NAMESPACE = "tidegate"


class LedgerActor:
    """Runs as one detached actor on the head node."""

    def __init__(self) -> None:
        self._ledger = Ledger()

    async def renew(self, replica: str, asks: Mapping[Account, tuple[Rule, Ask]]) -> dict[Account, Grant]:
        return self._ledger.renew(time.monotonic(), replica, asks)


def ensure() -> None:
    """Starts the actor unless it runs."""
    ray.remote(LedgerActor).options(
        name=NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        resources={"node:__internal_head__": 0.001},
        max_restarts=-1,
        max_concurrency=1000,
    ).remote()


class Renewal:
    """`quota.Renew` for this replica."""

    def __init__(self) -> None:
        self._replica = ray.get_runtime_context().get_actor_id() or ""
        self._actor: Any = None

    async def __call__(self, asks: Asks) -> dict[Account, Grant]:
        if self._actor is None:
            self._actor = await asyncio.to_thread(ray.get_actor, NAME, namespace=NAMESPACE)
        try:
            grants: dict[Account, Grant] = await self._actor.renew.remote(self._replica, dict(asks))
        except BaseException:
            # It may have been started anew under its name.
            self._actor = None
            raise
        return grants
