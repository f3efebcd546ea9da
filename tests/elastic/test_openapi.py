"""docs/openapi.yaml against endpoints of a local cluster: schemathesis asks as it says, and as it says not to.

And a client that is made of it works.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray

import clients_environment
import tidegate as tg
from clients_environment import CLIENTS
from local_ray import quiet
from ports import free_port
from tidegate import cluster, connection, keys, ray_internals
from tidegate.cluster import LocalCluster
from waiting import wait_for

pytestmark = pytest.mark.cluster
PAGE = Path(__file__).parents[2] / "docs" / "openapi.yaml"
PACKAGES = ("schemathesis==4.32.5", "openapi-python-client==0.29.1")
SEED = 20261123
# Few enough for one who asks as fast as schemathesis does to be refused.
LIMIT = {"requests_per_s": 10.0, "burst": 20}
BODY = {"inputs": [{"name": "measures", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}


@pytest.fixture(scope="module", name="local")
def _local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The endpoint `net` of the page's examples, and `guarded`, which is the same for who has a key."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TIDEGATE_HOME", str(home / "tidegate"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(str(CLIENTS))
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        try:
            local = cluster.up(cpus=4, gpus=0, serve_port=free_port(), auth="disabled")
            connection.connect()
            quiet()
            from echo_net import FirstTwo

            tg.register(FirstTwo(), name="net", example={"measures": np.zeros((2, 3), np.float32)})
            for name, tenants in (("net", {}), ("guarded", {"acme": LIMIT})):
                spec = {"name": name, "model": "net", "replicas": {"cpu": 0.1}, "access": {"tenants": tenants}}
                tg.deploy(tg.Endpoint.model_validate(spec))
            with tg.Client(local.serve_url) as client:
                wait_for(client.ready, 30.0)
            yield local
        finally:
            ray.shutdown()
            cluster.down()
            sys.modules.pop("echo_net", None)


@pytest.fixture(scope="module", name="programs")
def _programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the environment that has both."""
    return clients_environment.make(tmp_path_factory.mktemp("programs"), *PACKAGES)


def asked(programs: Path, local: LocalCluster, folder: Path, served: str, *options: str) -> Counter[str]:
    """Lets schemathesis ask; how often each operation got each status. Fails when it finds anything."""
    answers = folder / "answers.json"
    printed = clients_environment.run(
        *(programs / "schemathesis", "--config-file", CLIENTS / "schemathesis.toml", "run", PAGE),
        *("--url", local.serve_url, "--checks", "all", "--seed", str(SEED), "--no-color"),
        *("--request-timeout", "180", *options),
        folder=folder,
        timeout=3600,
        SCHEMATHESIS_HOOKS=str(CLIENTS / "as_documented.py"),
        SERVED=served,
        ANSWERS=str(answers),
    )
    print(printed)
    return Counter(json.loads(answers.read_text()))


def statuses(answers: Counter[str], path: str) -> set[int]:
    found = (words.rpartition(" ") for words in answers)
    return {int(status) for operation, _, status in found if operation.endswith(path)}


def processes() -> set[int]:
    """All processes that answer: the endpoints' replicas and the root's."""
    applications = ray_internals.serve_details()["applications"].values()
    return {replica["pid"] for one in applications for replica in one["deployments"]["replica"]["replicas"]}


def infer(local: LocalCluster, name: str, **headers: str) -> Any:
    answer = httpx.post(f"{local.serve_url}/v2/models/{name}/infer", json=BODY, headers=headers)
    return answer.json()["outputs"][0]["data"] if answer.status_code == 200 else answer.status_code


def test_without_a_key(programs: Path, local: LocalCluster, tmp_path: Path) -> None:
    before = processes()
    answers = asked(programs, local, tmp_path, "net", "--max-examples", "300")
    assert {200, 400, 401, 404, 415} == statuses(answers, "/infer")
    assert {400, 401} == statuses(answers, "load")
    assert min(answers["as JSON"], answers["as bytes"]) > 50
    assert (infer(local, "net"), processes()) == ([1.0, 2.0], before)


def test_with_a_key_for_one_endpoint(programs: Path, local: LocalCluster, tmp_path: Path) -> None:
    """It is not asked to take the endpoint away: the requests after that would all come to nothing."""
    before = processes()
    bearer = f"Bearer {keys.create('acme', scopes=['predict', 'deploy'], endpoints=['guarded'])[1]}"
    wait_for(lambda: infer(local, "guarded", authorization=bearer) == [1.0, 2.0])
    wait_for(lambda: infer(local, "net", authorization=bearer) == 403)
    options = ("--header", f"Authorization: {bearer}", "--exclude-operation-id", "unloadModel")
    answers = asked(programs, local, tmp_path, "guarded", "--max-examples", "60", *options)
    assert {200, 400, 403, 404, 429} <= statuses(answers, "/infer")
    assert {200, 400, 403, 404} <= statuses(answers, "/load")
    assert min(answers["as JSON"], answers["as bytes"]) > 0
    wait_for(lambda: infer(local, "guarded", authorization=bearer) == [1.0, 2.0])
    assert processes() == before


def test_a_client_that_is_made_of_it(programs: Path, local: LocalCluster, tmp_path: Path) -> None:
    # It asks for ruff, which came with it.
    command = ("generate", "--path", PAGE, "--meta", "none", "--fail-on-warning")
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    clients_environment.run(programs / "openapi-python-client", *command, folder=tmp_path, PATH=path)
    script, url = CLIENTS / "check_generated.py", local.serve_url
    printed = clients_environment.run(programs / "python", script, url, PYTHONPATH=str(tmp_path))
    assert printed.splitlines()[-1] == "all of it held: openapi-python-client"
