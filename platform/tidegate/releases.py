"""The releases that Tidegate is tested with. pyproject.toml has the same ones; a test compares."""

from __future__ import annotations

from typing import NamedTuple


class Range(NamedTuple):
    """From `first`, without `end`; both `(major, minor)`."""

    first: tuple[int, int]
    end: tuple[int, int]

    def text(self) -> str:
        """`2.60`, or `3.11 to 3.13`."""
        last = (self.end[0], self.end[1] - 1)
        return _dotted(self.first) if last == self.first else f"{_dotted(self.first)} to {_dotted(last)}"


RAY = Range((2, 60), (2, 61))
PYTHON = Range((3, 11), (3, 14))


def against(version: str, tested: Range) -> str:
    """How a version stands to the tested ones: "" for one of them, "older" or "newer"."""
    major, minor = version.split(".")[:2]
    found = (int(major), int("".join(digit for digit in minor if digit.isdigit()) or 0))
    return "older" if found < tested.first else "newer" if found >= tested.end else ""


def untested_ray(version: str) -> str:
    """A sentence for a Ray that Tidegate is not tested with; "" for one that it is."""
    how = against(version, RAY)
    if not how:
        return ""
    return (
        f"Ray {version} is {how} than the tested {RAY.text()}: what Tidegate takes from Ray's private modules may be "
        "missing there, and what stands on it is then off"
    )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
