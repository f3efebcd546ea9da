"""What every part of a spec shares: unknown keys are refused, and rules across keys name the key to change."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$")]
"""A name that is safe in a URL, a file name and a registry: lower-case letters, digits, `-` and `_`."""


class Part(BaseModel):
    """Base of every part of a spec. Numbers are not taken for strings or booleans, nor the reverse."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class BrokenRules(ValueError):
    """Rules across several keys that a part breaks: `(path relative to the part, sentence)` each."""

    def __init__(self, rules: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {sentence}" for path, sentence in rules))
        self.rules = rules
