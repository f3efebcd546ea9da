"""A run's numbers for Prometheus: Ray offers them on every node, beside its own."""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Gauge

from tidegate.training.claim import Wish
from tidegate.training.monitor import Monitor
from tidegate.training.progress import News

DESCRIPTIONS = {
    "step": "Steps that are done.",
    "workers": "Workers that train now.",
    "workers_wanted": "The most workers the run may have: those asked for, or train.workers.max.",
    "samples_per_second": "Rows trained on per second.",
    "loss": "Loss of the last batch.",
    "resizes": "Times the workers were replaced at a checkpoint: by another number, or on other nodes.",
    "restarts": "Times the run went on after workers or their driver were lost.",
    "pauses": "Times the run was paused.",
    "steps_computed_twice": "Steps that were computed again after a loss.",
    "seconds_training": "Time spent on steps.",
    "seconds_checkpointing": "Time that steps waited for checkpoints.",
    "seconds_restarting": "Time from letting go or losing workers to the next first step.",
}
"""By name, without the `tidegate_run_` before it. Sums count over the run's whole history.

They are gauges too: Ray's counters cannot show a zero, nor begin with what earlier drivers counted.
"""


def numbers(news: News) -> dict[str, float]:
    """The value of each of DESCRIPTIONS that is known by now."""
    progress, totals = news.progress, news.totals
    known = {
        "workers": progress.workers,
        "workers_wanted": news.bounds[1] if news.wanted is None else news.wanted,
        "samples_per_second": progress.rows_per_s,
        "resizes": totals.resizes,
        "restarts": totals.restarts,
        "pauses": totals.pauses,
        "steps_computed_twice": totals.steps_twice,
        "seconds_training": totals.training_s,
        "seconds_checkpointing": totals.checkpointing_s,
        "seconds_restarting": totals.restarting_s,
    }
    return known | ({"step": progress.step, "loss": progress.loss} if progress.total_steps else {})


class Shown(Monitor):
    """A monitor that shows its run's numbers whenever its driver asks for news. Lives in an actor of Ray."""

    def __init__(self, wish: Wish, **options: Any) -> None:
        super().__init__(wish, **options)
        self._gauges = {
            name: Gauge(f"tidegate_run_{name}", description, ("run",)).set_default_tags({"run": wish.run})
            for name, description in DESCRIPTIONS.items()
        }

    async def news(self) -> News:
        news = await super().news()
        for name, value in numbers(news).items():
            self._gauges[name].set(value)
        return news
