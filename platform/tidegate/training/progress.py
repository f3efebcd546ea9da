"""What a run tells the person who watches it: where it is, and each finished epoch. Workers do not wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tidegate.errors import TidegateError


@dataclass(frozen=True)
class Progress:
    """Where a run is. `step` counts finished steps; `loss` is the last batch's; `seconds_left` is a guess."""

    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float = float("nan")
    rows_per_s: float = 0.0
    workers: int = 0
    seconds_left: float = 0.0


@dataclass(frozen=True)
class News:
    """What happened since the last look."""

    progress: Progress
    epochs: list[Mapping[str, Any]] = field(default_factory=list)


class Monitor:
    """An actor: the latest progress, and the epochs nobody has fetched yet. A restart does not tell an epoch twice.

    It also keeps the error that ended the run, if one did that a restart cannot mend.
    """

    def __init__(self) -> None:
        self._progress = Progress()
        self._epochs: list[Mapping[str, Any]] = []
        self._last_epoch = 0
        self._failure: TidegateError | None = None

    def tell(self, progress: Progress) -> None:
        self._progress = progress

    def tell_epoch(self, record: Mapping[str, Any]) -> None:
        if record["epoch"] > self._last_epoch:
            self._last_epoch = record["epoch"]
            self._epochs.append(record)

    def tell_failure(self, error: TidegateError) -> None:
        self._failure = error

    def failure(self) -> TidegateError | None:
        return self._failure

    def news(self) -> News:
        epochs, self._epochs = self._epochs, []
        return News(self._progress, epochs)
