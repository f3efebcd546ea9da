"""An endpoint `tiny` without Ray, for tests of the ways to it: a model of three inputs behind a gate."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np

from tidegate.errors import RequestError
from tidegate.serving.batching import Batcher, Rows
from tidegate.serving.gate import Access, Gate, KeyWatch
from tidegate.serving.inference import Inference, Loaded
from tidegate.serving.ledger import Account, Grant
from tidegate.serving.limits import Limits
from tidegate.serving.meter import Meter
from tidegate.serving.quota import Asks, Quota
from tidegate.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("word", "BYTES", (-1,)), TensorSpec("n", "INT64", (-1,))),
    (TensorSpec("sum", "FP32", (-1,)), TensorSpec("shout", "BYTES", (-1,))),
)
GOOD = {"x": [[1.0, 2.0], [3.0, 4.0]], "word": ["a", "Grüße"], "n": [10, 20]}


class Tiny:
    """What answers for the endpoint once a version is loaded."""

    def __init__(self, access: Access) -> None:
        self.limits = Limits(body_bytes=100_000, rows=8)
        watch = KeyWatch()
        watch.refresh()
        self.quota = Quota("tiny", self.renew)
        self.gate = Gate("tiny", watch, self.quota)
        self.gate.set_access(access)
        self.meter = Meter()
        self.inference = Inference("tiny", self.meter, self.gate)

    def load(self, version: int = 3, **batching: Any) -> None:
        model: Any = SimpleNamespace(signature=SIGNATURE, aligned=lambda inputs: inputs)
        batcher = Batcher(self.predict, 4, on_pass=self.meter.passed, **batching)
        self.inference.loaded = Loaded(version, model, batcher, self.limits)

    def predict(self, inputs: Rows) -> Rows:
        if "boom" in inputs["word"].tolist():
            raise ZeroDivisionError
        if "no" in inputs["word"].tolist():
            raise RequestError("a word that is not liked")
        shout = np.array([str(word).upper() for word in inputs["word"]], dtype=object)
        return {"sum": (inputs["x"].sum(axis=1) + inputs["n"]).astype(np.float32), "shout": shout}

    async def renew(self, asks: Asks) -> dict[Account, Grant]:
        """A ledger that grants nothing."""
        return await asyncio.sleep(0, {})
