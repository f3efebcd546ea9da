"""Endpoints on a real local cluster: answers, versions swapped under load, a deployer that dies, a restarted cluster.

Version n of the model answers n to every row.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import torch
from ray.serve.schema import ServeDeploySchema

import endpoint_page
from listening import fallback_port, listening
from local_ray import quiet
from mutations import mutated
from numbers_model import BODY, DAMAGED, register
from ports import free_port
from tidegate import cluster, cluster_processes, connection, ray_internals, registry
from tidegate.errors import ClusterError, NotFoundError
from tidegate.serving import deploy, desired
from tidegate.serving.status import EndpointStatus
from tidegate.spec.endpoint import Endpoint, Replicas
from waiting import wait_for

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TIDEGATE_HOME", str(home / "tidegate"))
        patch.setenv("TIDEGATE_SERVE_PORT", str(free_port()))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        try:
            start()
            for number in (1, 2, DAMAGED):
                register(home / "models" / str(number), number)
            yield home
        finally:
            ray.shutdown()
            cluster.down()


def start() -> None:
    cluster.up(cpus=4, gpus=0, serve_port=int(os.environ["TIDEGATE_SERVE_PORT"]), auth="disabled")
    connection.connect()
    deploy.restore()


@pytest.fixture(name="url")
def _url(home: Path) -> str:
    """An endpoint `numbers` on version 1."""
    move_alias(1)
    status = deploy.deploy(Endpoint(name="numbers", model="numbers@production"))
    assert (status.version, status.status, status.replicas) == (1, "ready", 1)
    assert status.url == f"{deploy.serve_url()}/v2/models/numbers"
    return status.url


def move_alias(number: int) -> None:
    registry.set_alias("numbers", "production", number, who="test", why="test")


def infer(url: str) -> float:
    answer = httpx.post(f"{url}/infer", json=BODY)
    assert answer.status_code == 200, answer.text
    data = answer.json()["outputs"][0]["data"]
    assert len(data) == 2
    assert data[0] == data[1]
    return float(data[0])


def answers(url: str, number: int) -> bool:
    try:
        return infer(url) == number
    except (httpx.TransportError, AssertionError):
        return False


def status_of(name: str) -> EndpointStatus:
    return next(status for status in deploy.endpoints() if status.name == name)


@contextmanager
def load(url: str) -> Iterator[list[str]]:
    """Four clients that ask until the block ends; what they got, one word an answer."""
    got: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client() as client:
            while not stop.is_set():
                try:
                    answer = client.post(f"{url}/infer", json=BODY)
                    got.append(answer.json()["model_version"] if answer.status_code == 200 else answer.text)
                except (httpx.TransportError, ValueError) as error:
                    got.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(got) > 20)
        yield got
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_answers_the_protocol(url: str) -> None:
    answer = httpx.post(f"{url}/versions/1/infer", json=BODY)
    assert answer.json() == {
        "model_name": "numbers",
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1.0, 1.0]}],
    }
    metadata = httpx.get(url).json()
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}]
    assert httpx.get(f"{url}/versions/1").json() == metadata
    assert httpx.get(f"{url}/versions/1/ready").json() == {"name": "numbers", "ready": True}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v2/models/numbers/versions/9/ready", b"", 404),
        ("GET", "/v2/models/numbers/nothing", b"", 404),
        ("GET", "/v2/models/numbersx", b"", 404),
        ("GET", "/v2/models/none/ready", b"", 404),
        ("GET", "/elsewhere", b"", 404),
        ("GET", "/", b"", 404),
        ("GET", "/v2/models/numbers/infer", b"", 405),
        ("POST", "/v2/models/numbers/ready", b"", 405),
        ("DELETE", "/v2/health/live", b"", 405),
        ("POST", "/v2/models/numbers/infer", b"", 400),
        ("POST", "/v2/models/numbers/infer", b"{", 400),
        ("POST", "/v2/models/numbers/infer", b" " * (9 << 20), 413),
    ],
)
def test_every_refusal_is_json(url: str, method: str, path: str, body: bytes, status: int) -> None:
    answer = httpx.request(method, deploy.serve_url() + path, content=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


def test_five_thousand_mutated_requests_get_an_answer_below_500(url: str) -> None:
    (replica,) = replicas("tidegate.numbers")
    source = random.Random(7)
    counts: Counter[int] = Counter()
    with httpx.Client(timeout=30) as client:
        for number in range(5000):
            request = mutated(BODY, source)
            answer = client.request(request.method, url + request.path, content=request.body, headers=request.headers)
            assert answer.status_code < 500, (number, request, answer.text)
            assert answer.status_code == 200 or list(answer.json()) == ["error"], (number, request, answer.text)
            counts[answer.status_code] += 1
    assert counts[200] > 50
    assert counts[400] > 2000
    assert replicas("tidegate.numbers") == [replica]
    assert infer(url) == 1


def replicas(application: str) -> list[str]:
    deployments = ray_internals.serve_details()["applications"][application]["deployments"]
    return [replica["actor_name"] for deployment in deployments.values() for replica in deployment["replicas"]]


def test_the_root_tells_of_server_and_endpoints(url: str) -> None:
    base = deploy.serve_url()
    assert httpx.get(f"{base}/v2").json()["name"] == "tidegate"
    assert httpx.get(f"{base}/v2/").json() == httpx.get(f"{base}/v2").json()
    assert httpx.get(f"{base}/v2/health/live").json() == {"live": True}
    wait_for(lambda: {"name": "numbers", "ready": True} in httpx.get(f"{base}/v2/models").json()["models"])
    wait_for(lambda: httpx.get(f"{base}/v2/health/ready").status_code == 200)


def test_a_registered_module_serves_as_the_page_shows(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet()
    page = (Path(__file__).parents[2] / "docs" / "register.md").read_text()
    source, registering, deploying, *_ = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "nets.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    shown: dict[str, Any] = {}
    try:
        exec(registering, shown)
    finally:
        sys.modules.pop("nets", None)
    # The endpoint has the sources from the version.
    (tmp_path / "nets.py").unlink()
    exec(deploying, shown)
    assert capsys.readouterr().out.startswith("net@1\n[[")
    rows = np.random.default_rng(2).normal(size=(300, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = shown["net"].eval()(torch.from_numpy(rows)).numpy()
    assert np.allclose(shown["endpoint"].predict({"measures": rows})["output"], expected, rtol=1e-5, atol=1e-6)
    asked = answered(f"{deploy.serve_url()}/v2/models/net/infer")
    with torch.inference_mode():
        expected = shown["net"](torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])).numpy()
    assert np.allclose(np.reshape(asked, (2, 2)), expected, rtol=1e-5, atol=1e-6)
    shown_lines = endpoint_page.run(deploy.serve_url(), tmp_path).splitlines()
    assert shown_lines[0].startswith("{'output': array([[")
    assert shown_lines[1].startswith("('1',) ")
    assert (shown_lines[2], shown_lines[-1]) == ("10", "300 0 1")
    row = {"measures": rows[:1]}
    answer = asyncio.run(shown["endpoint"].apredict(row))
    assert np.allclose(answer["output"], shown["endpoint"].predict(row)["output"], rtol=1e-5, atol=1e-6)
    deploy.remove("net")


def answered(url: str) -> list[float]:
    """What the request on the page about endpoints is answered; it has the form that the page shows."""
    page = (Path(__file__).parents[2] / "docs" / "endpoint.md").read_text()
    (request,) = re.findall(r"--data-raw '\n(.*?)'\n", page, re.DOTALL)
    (shown,) = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    expected, answer = json.loads(shown), httpx.post(url, content=request).json()
    found = answer["outputs"][0].pop("data")
    del expected["outputs"][0]["data"]
    assert answer == expected
    return list(found)


def test_follows_an_alias_under_load_without_a_failure(url: str) -> None:
    with load(url) as got:
        move_alias(2)
        wait_for(lambda: got.count("2") > 100)
    assert set(got) == {"1", "2"}
    wait_for(lambda: status_of("numbers").version == 2)


def test_a_version_that_does_not_load_leaves_the_old_one_serving(url: str) -> None:
    with load(url) as got, pytest.raises(ClusterError, match=r"numbers@3 does not serve.*version 1 stays"):
        deploy.deploy(Endpoint(name="numbers", model="numbers@3"))
    assert set(got) == {"1"}
    status = status_of("numbers")
    assert (status.model, status.version) == ("numbers@production", 1)
    assert "weights.safetensors" in status.message


def test_an_alias_on_a_version_that_does_not_load_leaves_the_old_one_serving(url: str) -> None:
    move_alias(DAMAGED)
    wait_for(lambda: "numbers@3 does not serve" in status_of("numbers").message)
    assert infer(url) == 1
    move_alias(2)
    wait_for(lambda: answers(url, 2))


def test_a_first_deploy_that_fails_says_why_and_can_be_repaired(home: Path) -> None:
    with pytest.raises(ClusterError, match=r"weights\.safetensors.*serves nothing"):
        deploy.deploy(Endpoint(name="first", model="numbers@3"))
    assert status_of("first").status == "failed"
    assert deploy.deploy(Endpoint(name="first", model="numbers@2")).version == 2
    deploy.remove("first")
    assert "first" not in [status.name for status in deploy.endpoints()]
    wait_for(lambda: httpx.get(f"{deploy.serve_url()}/v2/models/first").status_code == 404)


def test_unknown_names_are_refused(home: Path) -> None:
    with pytest.raises(NotFoundError, match="numbers has no version or alias '9'"):
        deploy.deploy(Endpoint(name="none", model="numbers@9"))
    with pytest.raises(NotFoundError, match="no endpoint 'none'"):
        deploy.remove("none")


def test_two_replicas_change_version_together(home: Path) -> None:
    two = Replicas(min=2, max=2, cpu=0.5)
    assert deploy.deploy(Endpoint(name="pair", model="numbers@1", replicas=two)).replicas == 2
    status = deploy.deploy(Endpoint(name="pair", model="numbers@2", replicas=two))
    assert (status.version, status.replicas) == (2, 2)
    assert {infer(status.url) for _ in range(20)} == {2}
    deploy.remove("pair")


def test_a_killed_deployer_comes_back_and_goes_on(url: str) -> None:
    actor = ray.get_actor(desired.OWNER, namespace=desired.NAMESPACE)
    killed = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    with load(url) as got:
        os.kill(killed, signal.SIGKILL)
        move_alias(2)
        wait_for(lambda: got.count("2") > 20)
    assert set(got) == {"1", "2"}
    assert ray.get(actor.__ray_call__.remote(lambda _: os.getpid())) != killed
    wait_for(lambda: status_of("numbers").version == 2)


def test_other_peoples_applications_stay_and_cannot_remove_ours(url: str) -> None:
    theirs = {
        "name": "theirs",
        "route_prefix": "/theirs",
        "import_path": "tidegate.serving.root:build",
        "args": {"home": os.environ["TIDEGATE_HOME"], "is_loopback": True},
    }
    # Their deploy leaves ours out, which for Serve means to delete them.
    ray_internals.serve_apply(ServeDeploySchema.model_validate({"applications": [theirs]}))
    wait_for(lambda: answers(url, 1) and "theirs" in ray_internals.serve_details()["applications"])
    deploy.deploy(Endpoint(name="numbers", model="numbers@2"))
    applications = ray_internals.serve_details()["applications"]
    assert applications["theirs"]["status"] == "RUNNING"
    ours = [one["deployed_app_config"] for name, one in applications.items() if name != "theirs"]
    ray_internals.serve_apply(ServeDeploySchema.model_validate({"applications": ours}))


def test_nothing_can_be_reached_from_elsewhere(url: str) -> None:
    local = cluster.current()
    assert local is not None
    ports = listening({process.pid for process in cluster_processes.members(local.pid, local.temp_dir)})
    assert any(30000 <= port < 31000 for port in ports)
    # Serve's own fallback proxy for gRPC takes no other address; it answers for no endpoint.
    assert {port for port, is_open in ports.items() if is_open} <= {fallback_port(local, "GRPC")}


def test_endpoints_come_back_with_a_new_cluster(url: str) -> None:
    ray.shutdown()
    assert cluster.down()
    start()
    wait_for(lambda: answers(url, 1))
    wait_for(lambda: status_of("numbers").status == "ready")
