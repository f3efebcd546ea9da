"""Mutated requests: a valid one with its bytes, its structure, its path, its method or its headers changed."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass, field
from typing import Any

RUBBISH: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 1e308, 1e-320, 0.5),
    *("", "x", "FP32", "INT64", "BYTES", "\u0000", "\ud83d\ude00", "a" * 5000, "../../etc/passwd"),
    *([], [[]], [None], [[1], [2, 3]], {}, {"data": 1}, [[[[[[1]]]]]], [[1, 2]] * 50),
]
PATHS = [
    "",
    "/infer",
    "/infer/",
    "/ready",
    "/versions/1/infer",
    "/versions/0/infer",
    "/versions/%00",
    "//infer",
    "/..",
    "/%2e%2e",
]


@dataclass(frozen=True)
class Mutated:
    """One request to send. `path` comes after the endpoint's address."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def mutated(valid: dict[str, Any], source: random.Random) -> Mutated:
    """One request, from one to three changes of the valid one."""
    document = copy.deepcopy(valid)
    for _ in range(source.randint(1, 3)):
        document = _structure(document, source)
    body = json.dumps(document).encode()
    if source.random() < 0.4:
        body = _bytes(body, source)
    method = source.choice(["GET", "PUT", "DELETE", "OPTIONS"]) if source.random() < 0.05 else "POST"
    path = source.choice(PATHS) if source.random() < 0.1 else "/infer"
    return Mutated(method, path, body, _headers(source))


def _headers(source: random.Random) -> dict[str, str]:
    if source.random() > 0.15:
        return {"Content-Type": "application/json"}
    return source.choice(
        [
            {},
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "17"},
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            {"Content-Type": "application/json", "X-Long": "a" * 4000},
        ]
    )


def _structure(node: Any, source: random.Random) -> Any:
    """Change one place of a document: replace, remove, repeat or add."""
    if isinstance(node, dict) and node and source.random() < 0.8:
        key = source.choice(list(node))
        choice = source.random()
        if choice < 0.15:
            return {other: value for other, value in node.items() if other != key}
        if choice < 0.25:
            return {**node, source.choice(["extra", "data", "shape", "name"]): source.choice(RUBBISH)}
        return {**node, key: _structure(node[key], source)}
    if isinstance(node, list) and node and source.random() < 0.8:
        place = source.randrange(len(node))
        choice = source.random()
        if choice < 0.2:
            return node[:place] + node[place + 1 :]
        if choice < 0.4:
            return node[:place] + [node[place]] * source.randint(2, 5) + node[place:]
        return [*node[:place], _structure(node[place], source), *node[place + 1 :]]
    return source.choice(RUBBISH)


def _bytes(body: bytes, source: random.Random) -> bytes:
    """Cut, insert or overwrite a few bytes."""
    place = source.randrange(len(body) + 1)
    choice = source.random()
    if choice < 0.3:
        return body[:place]
    if choice < 0.6:
        return body[:place] + source.randbytes(source.randint(1, 8)) + body[place:]
    return body[:place] + source.randbytes(1) + body[place + 1 :]
