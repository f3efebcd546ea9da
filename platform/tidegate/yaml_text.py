"""Short YAML with comments, as a person would write it. No library writes both."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

PLAIN = re.compile(r"[A-Za-z_./~$][A-Za-z0-9_./~$-]*")


def commented(line: str, note: str) -> str:
    """The line, with a comment behind it unless that is empty."""
    return f"{line}  # {comment(note)}" if note else line


def comment(text: str) -> str:
    """On one line, and of signs that YAML takes."""
    return "".join(sign if sign.isprintable() and sign not in "\ufeff" else " " for sign in text)[:200]


def flow(keys: Mapping[str, Any]) -> str:
    """A mapping on one line."""
    return "{" + ", ".join(f"{key}: {value(given)}" for key, given in keys.items()) + "}"


def value(given: Any) -> str:
    """A document of mappings, lists, numbers, booleans and strings, on one line."""
    if isinstance(given, Mapping):
        return flow(given)
    if isinstance(given, list):
        return "[" + ", ".join(value(item) for item in given) + "]"
    if isinstance(given, bool):
        return str(given).lower()
    return scalar(given) if isinstance(given, str) else str(given)


def scalar(text: str) -> str:
    """A string as YAML: as it stands where that reads as the same string."""
    if PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    quoted: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.rstrip("\n")
