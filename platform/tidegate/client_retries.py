"""When a request is sent again: as the server says, else after growing pauses, and not for ever."""

from __future__ import annotations

import random
import time

DELAYS_S = (0.1, 0.4, 1.6)
"""Pauses where the server names none; each is drawn between half and one and a half of that."""
SHORTEST_S = 0.05
SPREAD = 0.2
"""Up to so much longer than the server says, so that all whom it turned away do not come back at once."""


class Retries:
    """The tries of one request. They end `budget_s` seconds after the first failure at the latest."""

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self._until: float | None = None
        self._delays = iter(DELAYS_S)

    def pause(self, after_s: float | None = None) -> float | None:
        """How long to wait now, after a failure; `after_s` is what the server said. None: it is in vain."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._budget_s
        left = self._until - now
        if after_s is not None:
            least = max(after_s, SHORTEST_S)
            return min(least * random.uniform(1, 1 + SPREAD), left) if least <= left else None
        delay = next(self._delays, None)
        return None if delay is None or left <= 0 else min(delay * random.uniform(0.5, 1.5), left)
