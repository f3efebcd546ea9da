"""What an endpoint takes of one request and of many."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """`queue`: requests that may wait on one replica; `timeout_s`: from the last byte of a request to its answer."""

    body_bytes: int = 8 * MIB
    rows: int = 1024
    queue: int = 256
    timeout_s: float = 30.0
