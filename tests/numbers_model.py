"""A model of which version n answers n to every row of two numbers, and the request that asks it for two."""

from __future__ import annotations

from pathlib import Path

import torch

from tidegate import artifact, registry
from tidegate.data.prepared import Prepared
from tidegate.models.build import build
from tidegate.spec.run import Spec

DAMAGED = 3
BODY = {"id": "7", "inputs": [{"name": "x", "datatype": "FP64", "shape": [2, 2], "data": [1, 2, 3, 4]}]}

SPEC = Spec.model_validate(
    {
        "name": "numbers",
        "data": {
            "source": {"path": "numbers.parquet", "format": "parquet"},
            "inputs": {"x": {"type": "number", "length": 2}},
            "target": {"column": "y", "type": "number"},
        },
        "model": {"type": "linear"},
    }
)


def register(folder: Path, number: int) -> None:
    column = {"type": "number", "length": 2, "missing": "refuse", "fill": [0, 0], "shift": [0, 0], "scale": [1, 1]}
    target = {"column": "y", "state": {"type": "number", "mean": float(number), "deviation": 1.0}}
    prepared = Prepared(folder, {"columns": {"x": column}, "target": target})
    module = build(SPEC.model, prepared.features, prepared.target.feature, seed=0)
    weights = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    digest = artifact.write(folder, SPEC, prepared, weights)
    version = registry.register("numbers", path=folder, digest=digest, run_id=f"run-{number}", metrics={}, lineage={})
    assert version.number == number
    if number == DAMAGED:
        (folder / "weights.safetensors").write_bytes(b"no longer what was written")
