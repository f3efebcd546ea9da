"""Ten thousand requests that no client would send: each gets an error of its own, and no replica dies of them."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import grpc
import httpx
import pytest
import ray

from listening import listening
from local_ray import quiet
from numbers_model import BODY, register
from ports import free_port
from tidegate import cluster, connection, ray_internals
from tidegate.cluster import LocalCluster
from tidegate.serving import deploy
from tidegate.serving.grpc_messages import METHODS, SERVICE, message
from tidegate.spec.endpoint import Endpoint
from waiting import wait_for

pytestmark = pytest.mark.cluster
HTTP_REQUESTS, BROKEN_HTTP, GRPC_CALLS = 7000, 1500, 1500
PATH = "/v2/models/numbers/infer"
HEADER_LENGTH = "Inference-Header-Content-Length"
MIB = 1024 * 1024

Asked = tuple[str, str, dict[str, str], bytes]
"""Method, path, headers, body."""


@pytest.fixture(scope="module", name="local")
def _local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The endpoint `numbers` on two replicas."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TIDEGATE_HOME", str(home / "tidegate"))
        patch.setenv("TIDEGATE_SERVE_PORT", str(port := free_port()))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        try:
            local = cluster.up(cpus=4, gpus=0, serve_port=port, auth="disabled")
            connection.connect()
            quiet()
            register(home / "models" / "1", 1)
            replicas = {"min": 2, "max": 2, "cpu": 0.1}
            deploy.deploy(Endpoint.model_validate({"name": "numbers", "model": "numbers@1", "replicas": replicas}))
            wait_for(lambda: httpx.get(f"{local.serve_url}/v2/health/ready").status_code == 200)
            yield local
        finally:
            ray.shutdown()
            cluster.down()


def processes() -> set[int]:
    """All processes that answer: the endpoint's replicas and the root's."""
    applications = ray_internals.serve_details()["applications"].values()
    return {replica["pid"] for one in applications for replica in one["deployments"]["replica"]["replicas"]}


STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 2**64, -(2**63) - 1, 1e308, -0.0, 0.5, "", "x", "\x00", "\ud800", "9" * 400),
    *([], {}, [[]], [None], {"a": {}}, ["x"], [1, 2, 3], [-1, 2], [2**40, 2**40], [2**63, 2], [1e9], [[1], [2, 3]]),
    *("FP16", "BF16", "BYTES", "INT64", "FP32", "BOOL", "fp64"),
)


def document(dice: random.Random) -> Any:
    """The good request with some of its values replaced, added or taken away."""
    changed: Any = json.loads(json.dumps(BODY))
    for _ in range(dice.randint(1, 3)):
        places: list[tuple[Any, Any]] = []

        def walk(value: Any, places: list[tuple[Any, Any]] = places) -> None:
            keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
            for key in list(keys):
                places.append((value, key))
                walk(value[key])

        walk(changed)
        if not places:
            break
        holder, key = dice.choice(places)
        what = dice.random()
        if what < 0.6:
            holder[key] = dice.choice(STRANGE)
        elif what < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            holder[dice.choice(("parameters", "outputs", "inputs", "data", "shape", "x", "model_version"))] = (
                dice.choice(STRANGE)
            )
    return changed


def changed_document(dice: random.Random) -> Asked:
    return "POST", PATH, {}, json.dumps(document(dice)).encode()


def flipped_bytes(dice: random.Random) -> Asked:
    body = bytearray(json.dumps(BODY).encode())
    for _ in range(dice.randint(1, 8)):
        body[dice.randrange(len(body))] = dice.randrange(256)
    return "POST", PATH, {}, bytes(body[: dice.randint(0, len(body))])


def numbers_of_another_kind(dice: random.Random) -> Asked:
    data = dice.choice(("NaN", "1e999", "-Infinity", "1" * 5000, "0x10", "01", "1e-999", "[" * 200 + "]" * 200))
    text = json.dumps(BODY).replace("[1, 2, 3, 4]", f"[{data}, 2, 3, 4]")
    return "POST", PATH, {}, text.encode()


def nested(dice: random.Random) -> Asked:
    depth = dice.choice((100, 1000, 10_000, 100_000))
    opening, closing_ = dice.choice((("[", "]"), ('{"a":', "}")))
    return "POST", PATH, {}, f'{{"inputs": {opening * depth}1{closing_ * depth}}}'.encode()


def many_tensors(dice: random.Random) -> Asked:
    count = dice.choice((10, 1000, 20_000))
    tensor = b'{"name":"x","datatype":"FP64","shape":[0,2],"data":[]}'
    return "POST", PATH, {}, b'{"inputs":[' + b",".join([tensor] * count) + b"]}"


def binary(dice: random.Random) -> Asked:
    size = dice.choice((-1, 0, 7, 31, 32, 33, 2**31, 2**63, "32", None))
    tensor = {"name": "x", "datatype": dice.choice(("FP64", "BYTES", "BOOL")), "shape": [2, 2]}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}).encode()
    length = dice.choice((len(head), len(head) - 1, 0, len(head) + 99, -5, "x", 10**30, ""))
    return "POST", PATH, {HEADER_LENGTH: str(length)}, head + dice.randbytes(dice.choice((0, 31, 32, 33)))


def packed(dice: random.Random) -> Asked:
    body = gzip.compress(dice.choice((json.dumps(BODY).encode(), b"0" * 20 * MIB)))
    name = dice.choice(("gzip", "deflate", "br", "gzip, gzip", "identity", "\xff"))
    return "POST", PATH, {"Content-Encoding": name}, body[: dice.choice((len(body), len(body) // 2, 3))]


def paths(dice: random.Random) -> Asked:
    parts = (
        "..",
        ".",
        "%2e%2e",
        "numbers",
        "versions",
        "1",
        "-1",
        "9" * 30,
        "infer",
        "ready",
        "%00",
        "%ff",
        "a" * 3000,
    )
    path = "/v2/models/" + "/".join(dice.choices((*parts, "", "config", "stats", ";x=1", "%2f"), k=dice.randint(0, 6)))
    method = dice.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW"))
    return method, path + dice.choice(("", "?", "?a=b", "?" + "x" * 2000)), {}, b""


KINDS: tuple[Callable[[random.Random], Asked], ...] = (
    *(changed_document, flipped_bytes, numbers_of_another_kind, nested, many_tensors, binary, packed, paths),
)


def test_requests_that_are_http_but_no_good_ones(local: LocalCluster) -> None:
    before = processes()
    dice = random.Random(20261123)
    kinds, statuses = Counter[str](), Counter[int]()
    address = local.serve_url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=60)) as client:
        for number in range(HTTP_REQUESTS):
            # Mostly changed documents: the longest way in.
            make = dice.choices(KINDS, (10, 5, 2, 0.2, 0.2, 4, 1, 4))[0]
            method, path, headers, body = make(dice)
            client.request(method, path, body, headers)
            answer = client.getresponse()
            text = answer.read()
            what = (
                f"request {number}, {make.__name__}: {answer.status} {text[:200]!r} to {method} {path} {body[:300]!r}"
            )
            assert answer.status < 500, what
            if answer.status >= 400 and method != "HEAD":
                assert json.loads(text)["error"], what
            kinds[make.__name__] += 1
            statuses[answer.status] += 1
    print(f"\n{HTTP_REQUESTS} requests: {dict(kinds)}, answered {dict(statuses)}")
    assert len(kinds) == len(KINDS)
    assert statuses[400] > HTTP_REQUESTS / 4
    assert_well(local, before)


def test_bytes_that_are_no_http(local: LocalCluster) -> None:
    """Half of them by HAProxy, half at a replica's own port."""
    before = processes()
    dice = random.Random(20261124)
    good = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(json.dumps(BODY))}\r\n\r\n{json.dumps(BODY)}".encode()
    )
    ports = [int(local.serve_url.rpartition(":")[2]), *http_ports()]
    for _ in range(BROKEN_HTTP):
        sent = bytearray(good * dice.randint(1, 3))
        for _ in range(dice.randint(1, 20)):
            place = dice.randrange(min(len(sent), 120) if dice.random() < 0.8 else len(sent))
            sent[place : place + dice.randint(0, 3)] = dice.choice(
                (b"\r\n", b"\x00", b" ", b":", dice.randbytes(2), b"")
            )
        with socket.create_connection(("127.0.0.1", dice.choice(ports)), timeout=30) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            answer = read_all(client)
        assert b" 500 " not in answer.partition(b"\r\n")[0], (bytes(sent), answer)
    assert_well(local, before)


def test_messages_that_are_no_protobuf(local: LocalCluster) -> None:
    before = processes()
    dice = random.Random(20261125)
    tensor = {"name": "x", "datatype": "FP64", "shape": [2, 2], "contents": {"fp64_contents": [1, 2, 3, 4]}}
    good = message("ModelInferRequest")(model_name="numbers", inputs=[tensor]).SerializeToString()
    codes = Counter[str]()
    unforeseen: list[tuple[str, bytes, Exception]] = []
    with grpc.insecure_channel(local.grpc_address) as channel:
        for _ in range(GRPC_CALLS):
            sent = bytearray(good)
            for _ in range(dice.randint(1, 6)):
                # After the model's name, so that it reaches the endpoint.
                sent[dice.randrange(9, len(sent))] = dice.randrange(256)
            method = dice.choice(list(METHODS)) if dice.random() < 0.2 else "ModelInfer"
            try:
                channel.unary_unary(f"/{SERVICE}/{method}")(bytes(sent), timeout=30)
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1
                unforeseen += [(method, bytes(sent), error)] * (error.code().name in ("INTERNAL", "UNKNOWN"))
    print(f"\n{GRPC_CALLS} calls: {dict(codes)}")
    assert not unforeseen
    assert codes["INVALID_ARGUMENT"] > GRPC_CALLS / 4
    assert_well(local, before)


def http_ports() -> list[int]:
    """The replicas' own ports."""
    return [port for port in listening(processes()) if 30000 <= port < 31000]


def read_all(client: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := client.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def assert_well(local: LocalCluster, before: set[int]) -> None:
    """The same processes live, and answer as ever."""
    assert processes() == before
    for _ in range(10):
        answer = httpx.post(f"{local.serve_url}{PATH}", json=BODY)
        assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, [1.0, 1.0])
