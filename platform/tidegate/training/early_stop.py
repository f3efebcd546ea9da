"""Early stopping: remembers the best epoch and says when to give up."""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.metrics import HIGHER_IS_BETTER
from tidegate.spec.train import EarlyStop


@dataclass
class BestEpoch:
    """The best epoch so far by the metric of the spec; without a spec every epoch is the best."""

    rule: EarlyStop | None
    epoch: int = 0
    value: float | None = None

    def improves(self, epoch: int, metrics: dict[str, float]) -> bool:
        """Note an epoch's metrics; whether it is the best so far."""
        if self.rule is None:
            self.epoch = epoch
            return True
        value = metrics.get(self.rule.metric)
        if value is None or not self._better(value):
            return False
        self.epoch, self.value = epoch, value
        return True

    def _better(self, value: float) -> bool:
        assert self.rule is not None
        if self.value is None:
            return value == value
        return value > self.value if HIGHER_IS_BETTER[self.rule.metric.split(".")[1]] else value < self.value

    def gives_up(self, epoch: int) -> bool:
        return self.rule is not None and epoch - self.epoch >= self.rule.patience
