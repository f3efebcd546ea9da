"""An endpoint: a named address that serves a model version on autoscaled replicas."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from tidegate.spec.base import BrokenRules, Name, Part

ModelRef = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}(@[a-z0-9][a-z0-9_-]{0,62})?$")]
"""`digits` (the newest version), `digits@production` (an alias) or `digits@3` (that version)."""


class Replicas(Part):
    """How many copies serve, and the logical resources each one holds."""

    min: int = Field(1, ge=1, le=1000)
    max: int = Field(1, ge=1, le=1000)
    cpu: float = Field(1.0, ge=0, le=1024)
    gpu: float = Field(0.0, ge=0, le=64, description="GPUs of one replica; below 1 several replicas share one.")

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.max < self.min:
            sentence = f"max is {self.max} but min is {self.min}; make max at least min"
            raise BrokenRules([("max", sentence), ("min", sentence)])
        if self.gpu > 1 and self.gpu % 1:
            raise BrokenRules([("gpu", f"{self.gpu:g} GPUs cannot be held; write a whole number, or less than 1")])
        return self


class Autoscale(Part):
    """When replicas are added and removed between the bounds."""

    target_ongoing_requests: float = Field(8.0, gt=0, le=10_000)
    up_after_s: float = Field(2.0, ge=0, le=3600)
    down_after_s: float = Field(60.0, ge=0, le=86_400)


class Batch(Part):
    """Requests that wait while the model is busy are answered together, up to this many rows."""

    max_rows: int = Field(64, ge=1, le=65_536)


class Capacity(Part):
    """What the endpoint asks of the devices that it shares with training."""

    priority: int = Field(0, ge=-1000, le=1000, description="Before which endpoints it gets places: the higher first.")
    headroom_replicas: int | None = Field(
        None, ge=0, le=1000, description="Replicas for which room is kept in advance; else as the cluster's rules say."
    )


class Endpoint(Part):
    """A named address. Served at `/v2/models/<name>`."""

    name: Name
    model: ModelRef
    replicas: Replicas = Replicas()
    autoscale: Autoscale = Autoscale()
    batch: Batch = Batch()
    capacity: Capacity = Capacity()
