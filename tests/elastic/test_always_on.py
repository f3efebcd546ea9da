"""What clients that never try again see of an endpoint while its replicas, its owner and Serve's controller are hurt.

Two replicas behind HAProxy under a steady load; not one request may fail.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import httpx
import pytest
import ray

import waiting
from local_ray import quiet
from numbers_model import BODY, DAMAGED, register
from ports import free_port
from steady_load import Account, steady_load
from tidegate import cluster, connection, keys, ray_internals
from tidegate.errors import ClusterError
from tidegate.serving import deploy, desired
from tidegate.serving.grpc_messages import SERVICE, message
from tidegate.spec.endpoint import Endpoint, Replicas

pytestmark = pytest.mark.cluster
wait_for = partial(waiting.wait_for, seconds=90.0)


@pytest.fixture(scope="module", name="url")
def _url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint `numbers` on version 1, two replicas."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TIDEGATE_HOME", str(home / "tidegate"))
        patch.setenv("TIDEGATE_SERVE_PORT", str(port := free_port()))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        try:
            cluster.up(cpus=8, gpus=0, serve_port=port, auth="disabled")
            connection.connect()
            quiet()
            for number in (1, 2, DAMAGED):
                register(home / "models" / str(number), number)
            yield deploy.deploy(endpoint()).url
        finally:
            ray.shutdown()
            cluster.down()


def endpoint(version: int = 1, replicas: int = 2, **more: Any) -> Endpoint:
    bounds = {"min": replicas, "max": replicas, "cpu": 0.1}
    return Endpoint.model_validate({"name": "numbers", "model": f"numbers@{version}", "replicas": bounds, **more})


def running() -> dict[str, int]:
    """Replica -> process, of those that run."""
    try:
        application = ray_internals.serve_details()["applications"]["tidegate.numbers"]
    except (ray.exceptions.RayError, KeyError):
        return {}
    replicas = application["deployments"]["replica"]["replicas"]
    return {one["replica_id"]: one["pid"] for one in replicas if one["state"] == "RUNNING"}


def more_answers(account: Account, count: int = 200) -> None:
    """Returns when so many more answers have come."""
    wanted = account.statuses[200] + count
    wait_for(lambda: account.statuses[200] >= wanted)


@pytest.fixture(name="whole")
def _whole(url: str) -> str:
    deploy.deploy(endpoint())
    wait_for(lambda: len(running()) == 2)
    return f"{url}/infer"


def test_versions_swapped(whole: str) -> None:
    with steady_load(whole, BODY) as account:
        for version in (2, 1, 2):
            deploy.deploy(endpoint(version))
            more_answers(account)
    print(f"\nversions swapped: {account}")
    assert account.failed == 0
    assert set(account.versions) == {"1", "2"}


def test_a_version_that_does_not_load_gets_no_request(whole: str) -> None:
    with steady_load(whole, BODY) as account:
        with pytest.raises(ClusterError, match="does not serve"):
            deploy.deploy(endpoint(DAMAGED))
        more_answers(account)
        (status,) = deploy.endpoints()
    print(f"\na damaged version: {account}")
    assert account.failed == 0
    assert set(account.versions) == {"1"}
    assert status.version == 1
    assert "numbers@3 does not serve" in status.message


def test_replicas_replaced(whole: str) -> None:
    """What a replica holds of a CPU changes with its process only."""
    before = running()
    with steady_load(whole, BODY) as account:
        changed = endpoint().model_copy(update={"replicas": endpoint().replicas.model_copy(update={"cpu": 0.2})})
        deploy.deploy(changed)
        wait_for(lambda: len(running()) == 2 and not running().keys() & before.keys())
        more_answers(account)
    print(f"\nreplicas replaced: {account}")
    assert account.failed == 0


def test_replicas_killed(whole: str) -> None:
    with steady_load(whole, BODY) as account:
        for _ in range(3):
            victim, pid = next(iter(running().items()))
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda victim=victim: victim not in running() and len(running()) == 2)
            more_answers(account)
    print(f"\nthree replicas killed: {account}")
    assert account.failed == 0


def test_scaled_in_and_out(whole: str) -> None:
    with steady_load(whole, BODY) as account:
        deploy.deploy(endpoint(replicas=1))
        wait_for(lambda: len(running()) == 1)
        more_answers(account, 1000)
        deploy.deploy(endpoint(replicas=2))
        wait_for(lambda: len(running()) == 2)
        more_answers(account)
    print(f"\nscaled in and out: {account}")
    assert account.failed == 0


def test_the_only_replica_killed(whole: str) -> None:
    """Requests wait for the next one."""
    deploy.deploy(endpoint(replicas=1))
    wait_for(lambda: len(running()) == 1)
    with steady_load(whole, BODY) as account:
        ((victim, pid),) = running().items()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: victim not in running() and len(running()) == 1)
        more_answers(account)
    print(f"\nthe only replica killed: {account}")
    assert account.failed == 0


def test_asleep_and_woken(whole: str) -> None:
    """With keys, so that not everybody wakes it."""
    _, key = keys.create("acme")
    asked = {"authorization": f"Bearer {key}"}

    def sleeper(version: int) -> Endpoint:
        awake = endpoint(version, autoscale={"down_after_s": 2}, access={"tenants": {"acme": {}}})
        return awake.model_copy(update={"replicas": Replicas(min=0, max=1, cpu=0.1)})

    for version in (1, 2):
        deploy.deploy(sleeper(version))
        wait_for(lambda: not running())
        assert httpx.post(whole, json=BODY).status_code == 401
        assert httpx.get(whole.removesuffix("infer") + "ready").status_code == 200
        wait_for(lambda: deploy.endpoints()[0].replicas == 0)
        (status,) = deploy.endpoints()
        assert status.status == "ready"
        assert "asleep" in status.message
        with steady_load(whole, BODY, headers=asked) as account:
            more_answers(account)
        print(f"\nwoken: {account}")
        assert account.failed == 0
        assert set(account.versions) == {str(version)}


def test_woken_over_grpc(whole: str) -> None:
    sleeper = endpoint(autoscale={"down_after_s": 2})
    deploy.deploy(sleeper.model_copy(update={"replicas": Replicas(min=0, max=1, cpu=0.1)}))
    wait_for(lambda: not running())
    local = cluster.current()
    assert local is not None
    request = message("ModelMetadataRequest")(name="numbers")
    with grpc.insecure_channel(local.grpc_address) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelMetadata")
        told = message("ModelMetadataResponse").FromString(ask(request.SerializeToString(), timeout=90))
    assert list(told.versions) == ["1"]


def test_the_owner_of_endpoints_killed(whole: str) -> None:
    actor = ray.get_actor(desired.OWNER, namespace=desired.NAMESPACE)
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    with steady_load(whole, BODY) as account:
        os.kill(pid, signal.SIGKILL)
        more_answers(account, 500)
        deploy.deploy(endpoint(2))
    print(f"\nthe owner killed: {account}")
    assert account.failed == 0


def test_the_controller_of_serve_killed(whole: str) -> None:
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    pid = ray.get(controller.get_pid.remote())
    with steady_load(whole, BODY) as account:
        os.kill(pid, signal.SIGKILL)
        more_answers(account, 500)
        wait_for(lambda: len(running()) == 2)
        deploy.deploy(endpoint(2))
        more_answers(account)
    print(f"\nthe controller killed: {account}")
    assert account.failed == 0
