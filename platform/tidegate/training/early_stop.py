"""Early stopping: remembers the best epoch and says when to give up."""

from __future__ import annotations

from tidegate.metrics import HIGHER_IS_BETTER
from tidegate.spec.train import EarlyStop


class BestEpoch:
    """The best epoch so far by the metric of the spec; without a metric every epoch is the best."""

    def __init__(self, metric: str | None, stop: EarlyStop | None) -> None:
        self.metric, self.stop = metric or (stop.metric if stop else None), stop
        self.epoch = 0
        self.value: float | None = None

    def improves(self, epoch: int, metrics: dict[str, float]) -> bool:
        """Note an epoch's metrics; whether it is the best so far."""
        if self.metric is None:
            self.epoch = epoch
            return True
        value = metrics.get(self.metric)
        if value is None or not self._better(value):
            return False
        self.epoch, self.value = epoch, value
        return True

    def _better(self, value: float) -> bool:
        assert self.metric is not None
        if self.value is None:
            return value == value
        return value > self.value if HIGHER_IS_BETTER[self.metric.split(".")[1]] else value < self.value

    def gives_up(self, epoch: int) -> bool:
        return self.stop is not None and epoch - self.epoch >= self.stop.patience
