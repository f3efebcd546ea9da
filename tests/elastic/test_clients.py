"""Clients that others wrote, in a virtual environment of their own, on endpoints of a local cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import clients_environment
import tidegate as tg
from clients_environment import CLIENTS
from local_ray import quiet
from ports import free_port
from tidegate import cluster, connection
from waiting import wait_for

pytestmark = pytest.mark.cluster
KINDS = {
    "BOOL": "bool",
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    "UINT8": "uint8",
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
REVIEWS = [("good film", "good"), ("bad film", "bad"), ("nice", "good"), ("awful", "bad")] * 60


@pytest.fixture(scope="module", name="addresses")
def _addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Where the endpoints of strangers_clients/ answer over HTTP and over gRPC."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TIDEGATE_HOME", str(home / "tidegate"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(str(CLIENTS))
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        try:
            local = cluster.up(cpus=8, gpus=0, serve_port=free_port(), auth="disabled")
            connection.connect()
            quiet()
            deploy_echoes()
            deploy_words(home)
            with tg.Client(local.serve_url) as client:
                wait_for(client.ready, 30.0)
            yield local.serve_url.removeprefix("http://"), local.grpc_address
        finally:
            ray.shutdown()
            cluster.down()
            sys.modules.pop("echo_net", None)


def deploy(name: str) -> None:
    tg.deploy(tg.Endpoint.model_validate({"name": name, "model": name, "replicas": {"cpu": 0.1}}))


def deploy_echoes() -> None:
    from echo_net import Echo

    for datatype, dtype in KINDS.items():
        kind = dtype if dtype in ("float32", "float64") else "float32"
        name = f"echo_{datatype.lower()}"
        tg.register(Echo(kind), args={"kind": kind}, name=name, example={"value": np.zeros((2, 3), dtype)})
        deploy(name)


def deploy_words(folder: Path) -> None:
    path = folder / "words.csv"
    path.write_text(
        "\n".join(["text,label", *(f"{text} {number},{label}" for number, (text, label) in enumerate(REVIEWS))])
    )
    spec: dict[str, Any] = {
        "name": "words",
        "data": {
            "source": {"path": str(path), "format": "csv"},
            "inputs": {"text": {"type": "text", "vocab_size": 300, "max_length": 16}},
            "target": {"column": "label", "type": "category"},
        },
        "model": {"type": "transformer", "layers": 1, "width": 16, "heads": 2},
        "train": {"epochs": 2, "global_batch": 32, "workers": {"min": 1, "max": 1}},
    }
    tg.train(tg.Spec.model_validate(spec)).wait()
    deploy("words")


@pytest.fixture(scope="module", name="python")
def _python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the clients in it. They want another protobuf than Ray does."""
    packages = ("tritonclient[http,grpc]==2.73.0", "kserve==0.21.0")
    return clients_environment.make(tmp_path_factory.mktemp("clients"), *packages) / "python"


def held(python: Path, script: str, *words: str) -> str:
    return clients_environment.run(python, CLIENTS / script, *words).splitlines()[-1]


def test_tritonclient(python: Path, addresses: tuple[str, str]) -> None:
    line = held(python, "check_triton.py", *addresses)
    assert line == "all of it held: tritonclient.http, compression and async_infer, tritonclient.grpc"


def test_kserve(python: Path, addresses: tuple[str, str]) -> None:
    assert held(python, "check_kserve.py", addresses[0]) == "all of it held: kserve InferenceRESTClient"
