"""What is measured on the held-out test split, and what a version must reach to be published."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from tidegate.spec.base import BrokenRules, Part

MetricPath = Annotated[str, StringConstraints(pattern=r"^(validation|test)\.[a-z0-9]+$")]


class Bound(Part):
    """A bound on a metric."""

    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Bound:
        if self.at_least is None and self.at_most is None:
            raise BrokenRules([(key, "missing; write at_least or at_most") for key in ("at_least", "at_most")])
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            sentence = f"at_least {self.at_least:g} is above at_most {self.at_most:g}"
            raise BrokenRules([("at_least", sentence), ("at_most", sentence)])
        return self


class Evaluate(Part):
    """All metrics of the task are computed; `metrics` are those the summary shows, `require` those that must be met."""

    metrics: Annotated[list[str], Field(min_length=1)] | None = None
    require: dict[MetricPath, Bound] = {}
