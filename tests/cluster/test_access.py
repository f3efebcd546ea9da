"""A cluster whose endpoints listen on all addresses: who may ask what, how much, and which ports are open at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import grpc
import httpx
import pytest
import ray

from listening import fallback_port, listening
from local_ray import quiet
from numbers_model import BODY, register
from ports import free_port
from tidegate import cluster, cluster_processes, connection, keys, ray_internals
from tidegate.cluster import LocalCluster
from tidegate.serving import deploy
from tidegate.serving.grpc_messages import SERVICE, message
from tidegate.spec.endpoint import Endpoint
from waiting import wait_for

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", name="local")
def _local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Endpoints `closed`, `limited` (of tenant `acme`) and `open` (public), all of the same model."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TIDEGATE_HOME", str(home / "tidegate"))
        patch.setenv("TIDEGATE_SERVE_HOST", "0.0.0.0")
        patch.setenv("TIDEGATE_SERVE_PORT", str(port := free_port()))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        try:
            local = cluster.up(cpus=4, gpus=0, serve_port=port, auth="disabled")
            connection.connect()
            quiet()
            register(home / "models" / "1", 1)
            for name, access in (
                ("closed", {}),
                ("limited", {"tenants": {"acme": {"requests_per_s": 0.01, "burst": 5}}}),
                ("open", {"public": True}),
            ):
                spec = {"name": name, "model": "numbers", "replicas": {"cpu": 0.1}, "access": access}
                deploy.deploy(Endpoint.model_validate(spec))
            wait_for(lambda: httpx.get(f"{local.serve_url}/v2/health/ready").status_code == 200)
            yield local
        finally:
            ray.shutdown()
            cluster.down()


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


def infer(local: LocalCluster, name: str, key: str | None) -> httpx.Response:
    return httpx.post(f"{local.serve_url}/v2/models/{name}/infer", json=BODY, headers=bearer(key))


def grpc_code(local: LocalCluster, name: str, key: str | None) -> str:
    request = message("ModelMetadataRequest")(name=name)
    with grpc.insecure_channel(local.grpc_address) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelMetadata")
        try:
            ask(request.SerializeToString(), metadata=tuple(bearer(key).items()), timeout=20)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


@pytest.fixture(scope="module", name="key")
def _key(local: LocalCluster) -> str:
    """A key of tenant `acme` for all endpoints, known to all replicas."""
    text = keys.create("acme")[1]
    for name in ("closed", "limited"):
        wait_for(lambda name=name: grpc_code(local, name, text) == "OK")
    return text


def test_a_key_is_needed_and_has_to_be_the_right_one(local: LocalCluster, key: str) -> None:
    _, other = keys.create("acme", endpoints=["open"])
    _, deployer = keys.create("acme", scopes=["deploy"])
    wait_for(lambda: infer(local, "closed", other).status_code == 403)
    wait_for(lambda: infer(local, "closed", deployer).status_code == 403)
    found = {word: infer(local, "closed", text) for word, text in {"none": None, "wrong": "tg_x", "right": key}.items()}
    assert {word: answer.status_code for word, answer in found.items()} == {"none": 401, "wrong": 401, "right": 200}
    assert found["none"].headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer KEY" in found["none"].json()["error"]
    assert [infer(local, "open", text).status_code for text in (None, "tg_x", key)] == [200, 200, 200]
    assert [grpc_code(local, "closed", text) for text in (None, "tg_x", other, key)] == [
        "UNAUTHENTICATED",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "OK",
    ]


def test_only_health_is_told_without_a_key(local: LocalCluster, key: str) -> None:
    told = {
        path: httpx.get(f"{local.serve_url}{path}").status_code
        for path in (
            "/v2",
            "/v2/health/live",
            "/v2/health/ready",
            "/v2/models",
            "/v2/models/closed",
            "/v2/models/closed/ready",
            "/v2/models/closed/config",
            "/v2/models/closed/stats",
            "/v2/models/open",
        )
    }
    assert {path for path, status in told.items() if status == 200} == {
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/closed/ready",
        "/v2/models/open",
    }
    assert set(told.values()) == {200, 401}


def test_the_list_has_what_the_key_reaches(local: LocalCluster, key: str) -> None:
    _, one = keys.create("acme", endpoints=["limited"])

    def listed(text: str) -> list[str]:
        answer = httpx.get(f"{local.serve_url}/v2/models", headers=bearer(text))
        return [model["name"] for model in answer.json().get("models", [])]

    wait_for(lambda: listed(key) == ["closed", "limited", "open"])
    wait_for(lambda: listed(one) == ["limited", "open"])


def test_a_revoked_key_stops_within_seconds(local: LocalCluster) -> None:
    made, text = keys.create("acme")
    wait_for(lambda: infer(local, "closed", text).status_code == 200)
    keys.revoke(made.id)
    wait_for(lambda: infer(local, "closed", text).status_code == 401)


def test_more_than_the_limit_is_refused_with_a_time(local: LocalCluster, key: str) -> None:
    answers = [infer(local, "limited", key) for _ in range(12)]
    assert [answer.status_code for answer in answers].count(200) == 5
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    _, other = keys.create("other")
    wait_for(lambda: infer(local, "limited", other).status_code == 200)
    assert [infer(local, "limited", other).status_code for _ in range(20)] == [200] * 20


def test_deploying_over_the_protocol_takes_a_key_for_it(local: LocalCluster, key: str) -> None:
    _, deployer = keys.create("acme", scopes=["deploy", "predict"], endpoints=["extra"])

    def ask(call: str, text: str | None, name: str = "extra", **parameters: str) -> int:
        url = f"{local.serve_url}/v2/repository/models/{name}/{call}"
        return httpx.post(url, json={"parameters": parameters}, headers=bearer(text), timeout=120).status_code

    wait_for(lambda: ask("load", deployer, model="nobody") == 404)
    refused = [ask("load", None), ask("load", key), ask("unload", key), ask("load", deployer, name="closed")]
    assert refused == [401, 403, 403, 403]
    assert ask("load", deployer, model="no such name") == 400
    assert ask("load", deployer, config="{}") == 400
    assert ask("load", deployer, model="numbers@1") == 200
    assert infer(local, "extra", deployer).status_code == 200
    request = message("RepositoryModelUnloadRequest")(model_name="extra")
    with grpc.insecure_channel(local.grpc_address) as channel:
        unload = channel.unary_unary(f"/{SERVICE}/RepositoryModelUnload")
        unload(request.SerializeToString(), metadata=tuple(bearer(deployer).items()), timeout=60)
    wait_for(lambda: infer(local, "extra", deployer).status_code == 404)
    assert ask("unload", deployer) == 404


def test_counts_are_on_the_metrics_page_by_tenant(local: LocalCluster, key: str) -> None:
    for _ in range(3):
        assert infer(local, "closed", key).status_code == 200
    (node,) = ray.nodes()
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def counted(name: str, **labels: str) -> float:
        total = 0.0
        for line in httpx.get(page).text.splitlines():
            if line.startswith(f"{name}{{") and all(f'{label}="{value}"' in line for label, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    wait_for(lambda: counted("ray_tidegate_requests_total", endpoint="closed", tenant="acme", status="200") >= 3)
    wait_for(lambda: counted("ray_tidegate_rows_total", endpoint="closed", tenant="acme") >= 6)
    wait_for(lambda: counted("ray_tidegate_request_seconds_count", endpoint="closed", tenant="acme") >= 3)
    assert counted("ray_tidegate_device_seconds_total", endpoint="closed", tenant="acme") > 0
    assert counted("ray_tidegate_requests_total", endpoint="closed", tenant="", status="401") >= 1
    assert counted("ray_tidegate_version", endpoint="closed") == 1


def test_what_can_be_reached_from_elsewhere(local: LocalCluster) -> None:
    ports = listening({process.pid for process in cluster_processes.members(local.pid, local.temp_dir)})
    serve, grpc_port = int(local.serve_url.rpartition(":")[2]), int(local.grpc_address.rpartition(":")[2])
    assert ports[serve]
    assert ports[grpc_port]
    replicas = {port for port in ports if 30000 <= port < 31000 or 40000 <= port < 41000}
    others = {port for port, is_open in ports.items() if is_open} - {serve, grpc_port} - replicas
    # Serve's fallback proxy: it answers for no endpoint over gRPC, and asks for keys as all do over HTTP.
    fallback = {fallback_port(local, kind) for kind in ("HTTP", "GRPC")}
    assert fallback <= others
    # On several nodes Serve's processes reach a replica from elsewhere, too: at most one more port each.
    assert len(others - fallback) <= len(ray_internals.serve_details()["applications"])
    for port in replicas & {port for port, is_open in ports.items() if is_open}:
        if port < 31000:
            answer = httpx.post(f"http://{socket.gethostbyname('localhost')}:{port}/v2/models/closed/infer", json=BODY)
            assert answer.status_code in (401, 404)
