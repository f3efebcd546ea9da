"""What a look at one condition found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """`name` is what was looked at. `wrong` keeps something from working, `warning` may; `remedy` mends either."""

    name: str
    state: State
    what: str
    remedy: str = ""

    def line(self) -> str:
        """One line for a person."""
        return f"{self.state:<8} {self.name:<15} {self.what}{f'; {self.remedy}' if self.remedy else ''}"


def fine(name: str, what: str) -> Finding:
    return Finding(name, "ok", what)


def warning(name: str, what: str, remedy: str) -> Finding:
    return Finding(name, "warning", what, remedy)


def wrong(name: str, what: str, remedy: str) -> Finding:
    return Finding(name, "wrong", what, remedy)
