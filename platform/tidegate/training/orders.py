"""How the first rank hears what is asked of its run: a thread that waits at the monitor, so that no step does."""

from __future__ import annotations

import logging
import threading
from typing import Any

import ray

from tidegate.training.monitor import Order

logger = logging.getLogger(__name__)
FLAGS: dict[Order, int] = {"none": 0, "yield": 1, "leave": 2, "abort": 3}
"""As they ride in the reduction: only the first rank raises one."""


class Orders:
    """`flag` is the latest order for a group of workers."""

    def __init__(self, monitor: Any, group: int) -> None:
        self.flag = 0
        self._monitor, self._group = monitor, group
        threading.Thread(target=self._listen, daemon=True, name="tidegate-orders").start()

    def _listen(self) -> None:
        try:
            self.flag = FLAGS[ray.get(self._monitor.await_order.remote(self._group))]
        except ray.exceptions.RayError as error:
            # Without its monitor a run has no driver: nobody would take its result.
            logger.warning("the run's monitor is gone: %s", error)
            self.flag = FLAGS["abort"]
