"""Asking a cluster's dashboard who it is, without Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

PROBE_S = 2.0


@dataclass(frozen=True)
class Answer:
    """`status` of HTTP: 401 where a token is asked for and none was sent, 403 where another one is wanted."""

    status: int
    ray: str = ""
    """The cluster's release of Ray, where it was told."""


def ask(url: str, headers: Mapping[str, str] | None = None, timeout_s: float = PROBE_S) -> Answer | None:
    """What answers at `url`; None when nothing does that speaks HTTP."""
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    try:
        connection = kind(parts.netloc, timeout=timeout_s)
        try:
            connection.request("GET", f"{parts.path.rstrip('/')}/api/version", headers=dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, _release(response.read(65536)))
        finally:
            connection.close()
    except (OSError, HTTPException, ValueError):
        return None


def _release(body: bytes) -> str:
    try:
        return str(json.loads(body).get("ray_version", ""))
    except (ValueError, AttributeError):
        return ""
