"""An endpoint: a named address that serves a model version on autoscaled replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from tidegate.spec import document
from tidegate.spec.base import BrokenRules, Name, Part

ModelRef = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}(@[a-z0-9][a-z0-9_-]{0,62})?$")]
"""`digits` (the newest version), `digits@production` (an alias) or `digits@3` (that version)."""


class Replicas(Part):
    """How many copies serve, and the logical resources each one holds."""

    min: int = Field(1, ge=0, le=1000, description="With 0 the endpoint sleeps when nobody asks; a request wakes it.")
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
    latency_target_ms: float | None = Field(
        25.0, gt=0, le=600_000, description="Batches are kept so small that a pass takes at most half of it."
    )


class Capacity(Part):
    """What the endpoint asks of the devices that it shares with training."""

    priority: int = Field(0, ge=-1000, le=1000, description="Before which endpoints it gets places: the higher first.")
    headroom_replicas: int | None = Field(
        None, ge=0, le=1000, description="Replicas for which room is kept in advance; else as the cluster's rules say."
    )


class Limits(Part):
    """What a single request may ask for, and how many may wait."""

    body_mb: float = Field(8.0, gt=0, le=1024, description="MiB of a request's body; a larger one is refused with 413.")
    rows: int = Field(1024, ge=1, le=1_000_000, description="Rows of a request; one with more is refused with 400.")
    queue: int = Field(
        256, ge=1, le=100_000, description="Requests that may wait at a replica; further ones are answered 503."
    )
    timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Seconds until a request that has no answer yet is given up."
    )


class Tenant(Part):
    """How much one tenant may ask of the endpoint. What is not set is not bounded."""

    requests_per_s: float | None = Field(
        None, gt=0, le=1_000_000, description="Requests a second in the long run; more are refused."
    )
    burst: float | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Requests that may come at once; else the larger of 1 and requests_per_s.",
    )
    concurrent: int | None = Field(
        None, ge=1, le=1_000_000, description="Requests under way at once; more are refused."
    )

    @model_validator(mode="after")
    def _paced(self) -> Tenant:
        if self.burst is not None and self.requests_per_s is None:
            sentence = "burst is what may come at once of requests_per_s; set requests_per_s too, or leave burst out"
            raise BrokenRules([("burst", sentence), ("requests_per_s", sentence)])
        return self

    @property
    def allowance(self) -> float | None:
        """How many requests may come at once: `burst`, or what holds in its place. None where there is no pace."""
        if self.requests_per_s is None or self.burst is not None:
            return self.burst
        return max(1.0, self.requests_per_s)


class Access(Part):
    """Who may ask the endpoint. Unless it is public, a request needs a key; `tidegate keys` makes them."""

    public: bool = Field(False, description="Whether anyone who reaches the address may ask, without a key.")
    tenants: dict[Name, Tenant] = Field({}, description="Bounds by tenant; a tenant that is not named has none.")

    @model_validator(mode="after")
    def _known_who_asks(self) -> Access:
        if self.public and self.tenants:
            sentence = (
                "a public endpoint asks nobody for a key, so it knows no tenants; make public false, or name none"
            )
            raise BrokenRules([("public", sentence), ("tenants", sentence)])
        return self


class Log(Part):
    """What is written of requests beside their counts."""

    access_fraction: float = Field(
        0.0, ge=0, le=1, description="The part of the requests that get a line in the replica's access log."
    )


class Endpoint(Part):
    """A named address. Served at `/v2/models/<name>`."""

    name: Name
    model: ModelRef
    replicas: Replicas = Replicas()
    autoscale: Autoscale = Autoscale()
    batch: Batch = Batch()
    capacity: Capacity = Capacity()
    limits: Limits = Limits()
    access: Access = Access()
    log: Log = Log()


def wanted(what: str | Path) -> Endpoint:
    """The endpoint of a spec's file, or a plain one of the model's own name for a version such as `digits@production`.

    Raises SpecError.
    """
    model, at, _ = str(what).partition("@")
    if at and not Path(what).exists():
        return document.parse(Endpoint, {"name": model, "model": str(what)}, source=str(what))
    return document.read(Endpoint, what)
