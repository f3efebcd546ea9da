"""Rules for sharing a cluster between serving and training, as a person writes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tidegate.spec.base import Part

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ServingRules(Part):
    """What serving may take."""

    ceiling: dict[str, Amount] = Field(
        default={}, description="The most of a resource that replicas may take from training, e.g. {GPU: 6}."
    )
    headroom: int = Field(
        default=0, ge=0, le=1000, description="Replicas of each endpoint for which room is kept before they are wanted."
    )


class TrainingRules(Part):
    """What training keeps."""

    floor: dict[str, Amount] = Field(
        default={}, description="What runs keep of a resource between them, whatever serving wants, e.g. {GPU: 1}."
    )
    pause: bool = Field(
        default=True, description="Whether a run may be paused whole when its fewest workers are in the way."
    )


class CapacityRules(Part):
    """Who gets the devices when not everybody can have what they want."""

    serving: ServingRules = ServingRules()
    training: TrainingRules = TrainingRules()
    priorities: dict[str, int] = Field(
        default={}, description="Priority of a run, by its name or its model's: the higher goes first. 0 without one."
    )
    cool_down_s: float = Field(
        default=30.0, ge=0, le=86400, description="How long devices must have been idle before a run grows into them."
    )
    when_full: Literal["borrow", "grow"] = Field(
        default="borrow", description="On a cluster that can grow: take from training first, or wait for nodes first."
    )
    grow_wait_s: float = Field(
        default=120.0, ge=0, le=86400, description="How long `when_full: grow` waits for nodes before it borrows."
    )
