"""Joins a cluster and asks a process on each node: `python -m tidegate.doctor.look ADDRESS FILE`, which prints JSON.

Run as a program, so that what a node executes travels by value: a node need not have Tidegate.
"""

from __future__ import annotations

import json
import sys
from typing import Any

ANSWER_S = 45.0
NEEDED = ("torch", "torchmetrics", "pyarrow", "safetensors", "tokenizers", "mlflow", "sqlalchemy", "pydantic", "yaml")
COUNT = "import torch; print(torch.cuda.device_count())"
TRACING = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def on_node(
    file: str, has_gpus: bool, needed: tuple[str, ...], count: str, collector: tuple[str, ...]
) -> dict[str, Any]:
    """Executed on a node."""
    import importlib.util
    import os
    import subprocess
    import sys

    cuda = None
    if has_gpus:
        # A task that asked for no GPU is shown none.
        shown = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        done = subprocess.run([sys.executable, "-c", count], env=shown, capture_output=True, text=True, check=False)
        cuda = int(done.stdout) if done.returncode == 0 else 0
    traces = None
    if any(os.environ.get(name) for name in collector):
        try:
            traces = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
        except ModuleNotFoundError:
            traces = False
    names = ("RAY_AUTH_MODE", "RAY_SERVE_", "RAY_TRAIN_", "TIDEGATE_HOME")
    return {
        "variables": {name: value for name, value in os.environ.items() if name.startswith(names)},
        "sees": os.path.exists(file),
        "cuda": cuda,
        "missing": [name for name in needed if importlib.util.find_spec(name) is None],
        "traces": traces,
    }


def look(address: str, file: str) -> dict[str, Any]:
    from tidegate import connection
    from tidegate.errors import ClusterError

    try:
        connection.connect(address)
    except ClusterError as error:
        return {"refusal": error.happened}
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(on_node)
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote(
            file, bool(node["Resources"].get("GPU")), NEEDED, COUNT, TRACING
        ): node
        for name, node in nodes.items()
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    found, silent = [], [asked[answer]["NodeManagerAddress"] for answer in late]
    for answer in done:
        node = asked[answer]
        try:
            told = ray.get(answer)
        except ray.exceptions.RayError:
            silent.append(node["NodeManagerAddress"])
            continue
        found.append({"address": node["NodeManagerAddress"], "resources": _plain(node["Resources"]), **told})
    return {"nodes": found, "silent": silent}


def _plain(resources: dict[str, float]) -> dict[str, float]:
    return {kind: amount for kind, amount in resources.items() if ":" not in kind}


if __name__ == "__main__":
    print(json.dumps(look(*sys.argv[1:])), flush=True)
