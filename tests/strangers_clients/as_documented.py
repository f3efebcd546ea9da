"""Hooks of schemathesis for the endpoints `net` and `guarded` (echo_net.FirstTwo), on docs/openapi.yaml.

The page says what models take, not what this one does: little of what schemathesis makes of it gets as far as the
model. Here some of its good inference requests are replaced by ones that fit, and what they are answered is checked.
SERVED is the endpoint to which that applies. How often each status came is written to the file that ANSWERS names.
"""

from __future__ import annotations

import atexit
import gzip
import json
import os
import random
import struct
import zlib
from collections import Counter
from typing import Any

import schemathesis

BYTES = "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"
FORMATS = {"FP32": "f", "FP64": "d", "INT16": "h"}
PACKED = {"gzip": gzip.compress, "deflate": zlib.compress}
answers: Counter[str] = Counter()

Rows = list[list[float]]


def fitting(seed: str, media_type: str) -> tuple[Any, dict[str, str], Rows]:
    """Body, headers and rows of a request that FirstTwo answers."""
    dice = random.Random(seed)
    datatype = dice.choice(list(FORMATS))
    step = 1 if datatype == "INT16" else 0.125
    # More than the rows of a pass, at times.
    rows = [[step * dice.randint(-30_000, 30_000) for _ in range(3)] for _ in range(dice.choice((1, 2, 3, 70)))]
    flat = [value for row in rows for value in row]
    tensor: dict[str, Any] = {"name": "measures", "datatype": datatype, "shape": [len(rows), 3]}
    document: dict[str, Any] = {"id": seed, "inputs": [tensor]}
    if dice.random() < 0.5:
        document["parameters"] = {"binary_data_output": dice.random() < 0.5, "priority": 1}
    if dice.random() < 0.5:
        document["outputs"] = [{"name": "output", "parameters": dice.choice((None, {}, {"binary_data": True}))}]
    if media_type != BYTES:
        tensor["data"] = dice.choice((flat, rows))
        return document, {}, rows
    data = struct.pack(f"<{len(flat)}{FORMATS[datatype]}", *flat)
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps(document).encode()
    body, headers = head + data, {HEADER_LENGTH: str(len(head)), "Accept-Encoding": "gzip"}
    if encoding := dice.choice((None, *PACKED)):
        body, headers["Content-Encoding"] = PACKED[encoding](body), encoding
    return body, headers, rows


def is_inference(case: schemathesis.Case) -> bool:
    return case.operation.path.endswith("/infer") and case.method == "POST"


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Not when it is made: of requests in a row, parts may still be taken from one to the next."""
    dice = random.Random(repr(case.body))
    if is_inference(case) and case.meta is not None and case.meta.generation.mode.is_positive and dice.random() < 0.75:
        seed = f"fits {dice.randrange(10**9)}"
        case.body, headers, _ = fitting(seed, case.media_type or "")
        for name in (HEADER_LENGTH, "Content-Encoding"):
            case.headers.pop(name, None)
        case.headers.update({**headers, "X-Request-Id": seed})


@schemathesis.check
def what_fits_is_answered(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    seed = case.headers.get("X-Request-Id", "")
    is_served = (
        case.path_parameters.get("name") == os.environ["SERVED"] and case.path_parameters.get("version", "1") == "1"
    )
    if not seed.startswith("fits ") or not is_inference(case) or not is_served or response.status_code == 429:
        return
    assert response.status_code == 200, f"{response.status_code}: {response.text}"
    _, _, rows = fitting(seed, case.media_type or "")
    assert response.headers["x-request-id"] == [seed]
    length = int(response.headers.get(HEADER_LENGTH.lower(), [str(len(response.content))])[0])
    answer = json.loads(response.content[:length])
    (output,) = answer["outputs"]
    assert (answer["id"], output["shape"]) == (seed, [len(rows), 2])
    expected = [value for row in rows for value in row[:2]]
    if tail := response.content[length:]:
        assert output["parameters"] == {"binary_data_size": len(tail)}
        assert list(struct.unpack(f"<{2 * len(rows)}f", tail)) == expected
        answers["as bytes"] += 1
    else:
        assert output["data"] == expected
        answers["as JSON"] += 1


@schemathesis.hook
def after_call(context: schemathesis.HookContext, case: schemathesis.Case, response: schemathesis.Response) -> None:
    answers[
        f"{case.operation.label} {response.status_code}" if case.method == case.operation.method.upper() else "other"
    ] += 1


def write() -> None:
    with open(os.environ["ANSWERS"], "w") as file:
        json.dump(answers, file)


atexit.register(write)
