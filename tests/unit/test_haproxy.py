"""HAProxy's configuration: Ray renders it, Tidegate edits it, the real HAProxy runs it before small backends."""

from __future__ import annotations

import datetime
import hashlib
import http.client
import ipaddress
import json
import re
import select
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ray.serve._private import haproxy as rays
from ray.serve._private.common import RequestProtocol
from ray.serve.config import HTTPOptions, gRPCOptions

from tidegate import cluster_environment, haproxy
from tidegate.cluster_environment import NODE_FLAGS
from tidegate.haproxy import Options, edited
from tidegate.serving.status import answers_ready

INFER = "/inference.GRPCInferenceService/ModelInfer"
HOST = "127.0.0.1"


class Replica(BaseHTTPRequestHandler):
    """Answers with the sum of the body, but for the paths that say otherwise. `died`: who let a request die."""

    protocol_version = "HTTP/1.1"
    died: set[str] = set()

    def do_GET(self) -> None:
        self._answer(b"healthy")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        what = self.path.rpartition("/")[2]
        if what == "headers":
            self._answer(" ".join(name.lower() for name in self.headers).encode())
            return
        if what == "never":
            self.rfile.read(1)
        elif what == "garbage":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
        elif what.startswith("dies") and what not in self.died:
            self.died.add(what)
        else:
            self._answer(hashlib.sha256(body).hexdigest().encode())
            return
        self.close_connection = True

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        # HAProxy ends the connections of its health checks early.
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def http_replica() -> Iterator[int]:
    with ThreadingHTTPServer((HOST, 0), Replica) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


class Named(grpc.GenericRpcHandler):
    """Answers every call with its own name, the size of the message and the metadata it was routed by."""

    def __init__(self, name: str) -> None:
        self.name = name

    def service(self, details: Any) -> Any:
        if details.method.endswith("/Healthz"):
            return grpc.unary_unary_rpc_method_handler(lambda *_: rays.HEALTHY_MESSAGE.encode())
        if details.method.endswith("/Talk"):
            return grpc.stream_stream_rpc_method_handler(lambda messages, _: messages)
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        metadata = dict(context.invocation_metadata())
        return json.dumps([self.name, len(message), metadata.get("application")]).encode()


@contextmanager
def grpc_replica(name: str) -> Iterator[int]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=[Named(name)])
        port = server.add_insecure_port(f"{HOST}:0")
        server.start()
        yield port
        server.stop(None).wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@dataclass(frozen=True)
class Ports:
    http: int
    grpc: int
    metrics: int
    stats: int


def rendered(folder: Path, ports: Ports, backends: list[rays.BackendConfig], *, is_grpc: bool = True) -> str:
    """The configuration as Ray writes it on a node with Tidegate's flags."""
    functions = ["tidegate.some.function"] if is_grpc else []
    config = rays.HAProxyConfig(
        socket_path=str(folder / "s"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        metrics_port=ports.metrics,
        stats_port=ports.stats,
        http_options=HTTPOptions(host=HOST, port=ports.http),
        grpc_options=gRPCOptions(port=ports.grpc, grpc_servicer_functions=functions),
        retry_on=NODE_FLAGS["RAY_SERVE_HAPROXY_RETRY_ON"],
        bufsize=int(NODE_FLAGS["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"]),
        metrics_enabled=bool(int(NODE_FLAGS["RAY_SERVE_HAPROXY_METRICS_ENABLED"])),
        nbthread=2,
        has_received_routes=True,
        has_received_servers=True,
    )
    by_name = {backend.name: backend for backend in backends}
    rays.HAProxyApi(config, by_name, str(folder / "cfg"))._generate_config_file_internal()
    return (folder / "cfg").read_text()


def backend(protocol: str, application: str, ports: list[int], backup: int | None = None) -> rays.BackendConfig:
    servers = [rays.ServerConfig(f"r{place}", HOST, port) for place, port in enumerate(ports)]
    return rays.BackendConfig(
        name=rays.HAProxyManager.get_safe_name(f"{protocol}-{application}"),
        path_prefix="/v2/models/" + application.rpartition(".")[2],
        servers=servers,
        fallback_server=rays.ServerConfig("proxy", HOST, backup) if backup else None,
        app_name=application,
        protocol=RequestProtocol(protocol.upper() if protocol == "http" else "gRPC"),
    )


@contextmanager
def running(folder: Path, config: str, port: int) -> Iterator[None]:
    path = folder / "edited"
    path.write_text(config)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([haproxy.binary(), "-db", "-f", path], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 10
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            try:
                socket.create_connection((HOST, port), timeout=1).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(name="folder", scope="module")
def _folder() -> Iterator[Path]:
    # HAProxy takes socket paths of 97 characters at most.
    with tempfile.TemporaryDirectory(prefix="tidegate-test-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(name="ports", scope="module")
def _ports() -> Ports:
    return Ports(*free_ports(4))


@pytest.fixture(name="backends", scope="module")
def _backends() -> Iterator[list[rays.BackendConfig]]:
    """Endpoint `a` has replicas, `b` has none, `c` has none but Ray's proxy, which answers nothing over HTTP; `shop` is
    another's application, with Ray's proxy alone."""
    with ExitStack() as replicas:
        first, second = (replicas.enter_context(http_replica()) for _ in range(2))
        a, root, shop, proxy = (replicas.enter_context(grpc_replica(name)) for name in ("a", "root", "shop", "proxy"))
        dead, other = free_ports(1)[0], replicas.enter_context(http_replica())
        yield [
            backend("http", "tidegate.a", [first, second]),
            backend("http", "tidegate.b", []),
            backend("http", "tidegate.c", [], dead),
            backend("http", "tidegate", [second], dead),
            backend("http", "shop", [], other),
            backend("grpc", "tidegate.a", [a]),
            backend("grpc", "tidegate.b", []),
            backend("grpc", "tidegate.c", [], proxy),
            backend("grpc", "tidegate", [root]),
            backend("grpc", "shop", [shop]),
        ]


@pytest.fixture(name="config", scope="module")
def _config(folder: Path, ports: Ports, backends: list[rays.BackendConfig]) -> str:
    return rendered(folder, ports, backends)


@pytest.fixture(name="served", scope="module")
def _served(folder: Path, ports: Ports, config: str) -> Iterator[Ports]:
    """With the times that must run out cut to a second."""
    quick = edited(config, Options()).replace("http-request 30s", "http-request 1s").replace("server 300s", "server 1s")
    with running(folder, quick, ports.http):
        yield ports


def ask(port: int, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
    with closing(http.client.HTTPConnection(HOST, port, timeout=10)) as connection:
        connection.request(method, path, body)
        answer = connection.getresponse()
        answer.body = answer.read()  # type: ignore[attr-defined]
        return answer


def error_in(answer: http.client.HTTPResponse) -> str:
    assert answer.getheader("content-type") == "application/json"
    document = json.loads(answer.body)  # type: ignore[attr-defined]
    assert list(document) == ["error"]
    return str(document["error"])


def message(name: str, field: int = 1, padding: int = 0) -> bytes:
    """A protobuf message with a string in one field and bytes in field 7."""
    head = bytes([field << 3 | 2, len(name)]) + name.encode()
    size, length = padding, b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return head + (b"\x3a" + length + bytes([size]) + bytes(padding) if padding else b"")


@pytest.fixture(name="call")
def _call(served: Ports) -> Iterator[Callable[..., list[Any]]]:
    with grpc.insecure_channel(f"{HOST}:{served.grpc}") as channel:

        def call(path: str, sent: bytes, **metadata: str) -> list[Any]:
            answer = channel.unary_unary(path)(sent, metadata=list(metadata.items()), timeout=10)
            return list(json.loads(answer))

        yield call


def warnings(folder: Path, config: str) -> set[str]:
    """What HAProxy, which must take `config`, remarks about it."""
    path = folder / "checked"
    path.write_text(config)
    done = subprocess.run([haproxy.binary(), "-c", "-f", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"^\[WARNING\] .*? : config : (?:parsing \[.*?\] : )?(.*)", done.stderr, re.MULTILINE))


@pytest.mark.parametrize("is_grpc", [True, False])
@pytest.mark.parametrize("is_empty", [True, False])
def test_every_edit_finds_its_place_and_haproxy_takes_the_result(
    folder: Path, ports: Ports, backends: list[rays.BackendConfig], certificate: Path, is_grpc: bool, is_empty: bool
) -> None:
    config = rendered(folder, ports, [] if is_empty else backends, is_grpc=is_grpc)
    for options in (Options(), Options(tls_cert=str(certificate))):
        result = edited(config, options)
        assert "# Not edited" not in result
        assert edited(result, options) == result
        assert warnings(folder, result) <= warnings(folder, config)


def test_edits_without_a_place_are_named_and_hinder_no_other(config: str, ports: Ports) -> None:
    changed = config.replace("listen stats", "listen numbers").replace("backend default_backend", "backend none")
    result = edited(changed, Options())
    skipped = [line for line in result.splitlines() if line.startswith("# Not edited")]
    assert [line.split(": ")[1] for line in skipped] == ["loopback stats", "not found"]
    assert f"bind {HOST}:{ports.metrics}" in result
    assert "\n    http-error status 503" in result
    assert "# Not edited: errors: no section" in edited("frontend x\n  bind :1\n", Options())


def test_times_that_were_set_stay(folder: Path, config: str) -> None:
    changed = config.replace("timeout client 3600s", "timeout client 7s\n    timeout server 8s")
    result = edited(changed, Options())
    times = [line.strip() for line in result.splitlines() if "timeout " in line]
    assert "timeout client 7s" in times
    assert "timeout server 8s" in times
    assert "timeout client 60s" not in times
    assert "timeout server 300s" not in times
    times = [line.strip() for line in edited(config, Options()).splitlines() if "timeout " in line]
    assert {"timeout client 60s", "timeout client 300s", "timeout server 300s", "timeout queue 30s"} < set(times)
    assert "timeout client 3600s" not in times


@pytest.mark.parametrize("page", ["metrics", "stats"])
def test_pages_of_haproxy_answer_on_loopback_only(served: Ports, page: str) -> None:
    port = getattr(served, page)
    assert ask(port, "GET", f"/{page}").status == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_nothing_served_there(served: Ports) -> None:
    answer = ask(served.http, "GET", '/v2/"quoted"')
    assert answer.status == 404
    assert error_in(answer) == 'nothing is served at /v2/"quoted"; GET /-/routes lists what is'


def test_no_replica(served: Ports) -> None:
    answer = ask(served.http, "POST", "/v2/models/b/infer", b"x")
    assert (answer.status, answer.getheader("retry-after")) == (503, "1")
    assert error_in(answer).startswith("no replica can take the request now; ")


def test_an_answer_that_is_none(served: Ports) -> None:
    answer = ask(served.http, "POST", "/v2/models/a/garbage", b"x")
    assert answer.status == 502
    assert error_in(answer).startswith("the replica answered with what is no HTTP")


def test_no_answer(served: Ports) -> None:
    answer = ask(served.http, "POST", "/v2/models/a/never", b"x")
    assert answer.status == 504
    assert error_in(answer).startswith("the replica did not answer within 300 s")


@contextmanager
def posting(port: int, path: str, *headers: str) -> Iterator[tuple[socket.socket, Callable[[], Any]]]:
    """A connection on which the head of a request was sent and taken, and what reads the answer to it."""
    with socket.create_connection((HOST, port), timeout=10) as client:
        head = (f"POST {path} HTTP/1.1", "host: x", "expect: 100-continue", *headers, "", "")
        client.sendall("\r\n".join(head).encode())
        taken = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert client.recv(len(taken), socket.MSG_WAITALL) == taken

        def answer() -> Any:
            with closing(http.client.HTTPResponse(client, method="POST")) as found:
                found.begin()
                found.body = found.read()  # type: ignore[attr-defined]
                return found

        yield client, answer


def test_the_request_of_a_replica_that_died_goes_whole_to_another(served: Ports) -> None:
    """Its body comes after its head: without the wait for it HAProxy could not send the request again."""
    body = bytes(range(250)) * 240
    Replica.died.clear()
    with posting(served.http, "/v2/models/a/dies", f"content-length: {len(body)}") as (client, answer):
        client.sendall(body)
        found = answer()
    assert (found.status, found.body) == (200, hashlib.sha256(body).hexdigest().encode())
    assert Replica.died == {"dies"}


def test_a_body_that_trickles_in(served: Ports) -> None:
    with posting(served.http, "/v2/models/a/sum", "content-length: 1000") as (client, answer):
        deadline = time.monotonic() + 8
        while not select.select([client], [], [], 0.1)[0]:
            assert time.monotonic() < deadline
            client.sendall(b"x")
        found = answer()
    assert found.status == 408
    assert error_in(found).startswith("the request did not arrive whole within 30 s")


def test_a_body_that_is_malformed(served: Ports) -> None:
    with posting(served.http, "/v2/models/a/sum", "transfer-encoding: chunked") as (client, answer):
        client.sendall(b"no number\r\n")
        found = answer()
    assert found.status == 400
    assert error_in(found).startswith("the request is not well-formed HTTP")


def test_an_offer_of_another_protocol_does_not_reach_replicas(served: Ports) -> None:
    with socket.create_connection((HOST, served.http), timeout=10) as client:
        offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        client.sendall(b"POST /v2/models/a/headers HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n" + offer + b"\r\n{}")
        answer = b""
        while b"content-length" not in answer.partition(b"\r\n\r\n")[2]:
            answer += (received := client.recv(4096))
            assert received
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"upgrade" not in answer.partition(b"\r\n\r\n")[2].split()


def test_rays_own_pages_stay(served: Ports) -> None:
    assert ask(served.http, "GET", "/-/healthz").body == b"success"  # type: ignore[attr-defined]
    assert json.loads(ask(served.http, "GET", "/-/routes").body)["/v2/models/a"] == "tidegate.a"  # type: ignore[attr-defined]


def test_a_connection_is_kept(served: Ports) -> None:
    with closing(http.client.HTTPConnection(HOST, served.http, timeout=10)) as connection:
        for _ in range(2):
            connection.request("GET", "/v2/models/a")
            assert connection.getresponse().read() == b"healthy"
            assert connection.sock is not None


@pytest.mark.parametrize("padding", [0, 1_000_000])
def test_grpc_goes_to_the_endpoint_that_the_message_names(call: Callable[..., list[Any]], padding: int) -> None:
    sent = message("a", padding=padding)
    assert call(INFER, sent) == ["a", len(sent), "tidegate.a"]


def test_grpc_whose_message_comes_after_its_head_is_waited_for(served: Ports) -> None:
    with grpc.insecure_channel(f"{HOST}:{served.grpc}") as channel:

        def late() -> Iterator[bytes]:
            # The answer to a later call on the same connection says that the head was taken.
            channel.unary_unary("/inference.GRPCInferenceService/ServerReady")(b"", timeout=10)
            yield message("a")

        assert json.loads(channel.stream_unary(INFER)(late(), timeout=10))[0] == "a"


@pytest.mark.parametrize(
    ("method", "sent"),
    [
        ("ServerReady", b""),
        ("ModelInfer", message("unknown")),
        ("ModelInfer", message("ab")),
        ("RepositoryModelLoad", message("a", field=2)),
        ("RepositoryModelLoad", message("a")),
    ],
)
def test_other_grpc_of_the_service_goes_to_the_root(call: Callable[..., list[Any]], method: str, sent: bytes) -> None:
    assert call(f"/inference.GRPCInferenceService/{method}", sent) == ["root", len(sent), "tidegate"]


def test_grpc_with_rays_metadata_goes_where_that_says(call: Callable[..., list[Any]]) -> None:
    assert call(INFER, message("a"), application="shop") == ["shop", 3, "shop"]
    assert call("/shop.Buy/Now", b"", application="shop") == ["shop", 0, "shop"]


def test_grpc_for_others_is_as_it_was(call: Callable[..., list[Any]]) -> None:
    for path, sent, metadata in [("/shop.Buy/Now", b"", {}), (INFER, message("a"), {"application": "nobody"})]:
        with pytest.raises(grpc.RpcError) as caught:
            call(path, sent, **metadata)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_grpc_for_an_endpoint_without_replicas(call: Callable[..., list[Any]]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(INFER, message("b"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    assert caught.value.details().startswith("no replica can take the request now; ")  # type: ignore[attr-defined]


def test_the_root_in_place_of_replicas_that_sleep(served: Ports, call: Callable[..., list[Any]]) -> None:
    assert call(INFER, message("c")) == ["root", 3, "tidegate.c"]
    assert ask(served.http, "GET", "/v2/models/c").status == 200
    assert ask(served.http, "GET", "/v2/models/shop").status == 200


def test_without_a_root_rays_proxy_stays_in_place_of_replicas(folder: Path, ports: Ports) -> None:
    alone = [backend("grpc", "tidegate.c", [], 4321), backend("http", "tidegate.c", [], 4322)]
    result = edited(rendered(folder, ports, alone), Options())
    assert f"server proxy {HOST}:4321 proto h2 check backup" in result
    assert f"server proxy {HOST}:4322 check backup" in result


def test_both_sides_of_a_grpc_stream_may_talk_in_turn(served: Ports) -> None:
    said = threading.Semaphore(0)

    def messages() -> Iterator[bytes]:
        for word in (b"one", b"two"):
            yield word
            assert said.acquire(timeout=10)

    with grpc.insecure_channel(f"{HOST}:{served.grpc}") as channel:
        metadata = [("application", "shop")]
        for answer, word in zip(
            channel.stream_stream("/shop.Chat/Talk")(messages(), metadata=metadata, timeout=10),
            (b"one", b"two"),
            strict=True,
        ):
            assert answer == word
            said.release()


@pytest.fixture(name="certificate", scope="module")
def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, clear = serialization.Encoding.PEM, serialization.NoEncryption()
    path = folder / "a certificate's.pem"
    path.write_bytes(
        signed.public_bytes(encoding) + key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, clear)
    )
    return path


def test_tls(
    folder: Path, backends: list[rays.BackendConfig], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = Ports(*free_ports(4))
    config = edited(rendered(folder, ports, backends), Options(tls_cert=str(certificate)))
    trusting = ssl.create_default_context(cafile=str(certificate))
    with running(folder, config, ports.http):
        with closing(http.client.HTTPSConnection(HOST, ports.http, context=trusting, timeout=10)) as connection:
            connection.request("GET", "/v2/models/a")
            assert connection.getresponse().read() == b"healthy"
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            ask(ports.http, "GET", "/v2/models/a")
        trusting.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((HOST, ports.http)) as bare,
            trusting.wrap_socket(bare, server_hostname=HOST) as s,
        ):
            assert s.selected_alpn_protocol() == "h2"
        application = "a"
        assert not answers_ready(HOST, ports.http, application, 1)
        monkeypatch.setenv("TIDEGATE_TLS_CERT", str(certificate))
        assert answers_ready(HOST, ports.http, application, 1)
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"{HOST}:{ports.grpc}", credentials) as channel:
            assert json.loads(channel.unary_unary(INFER)(message("a"), timeout=10))[0] == "a"
        with grpc.insecure_channel(f"{HOST}:{ports.grpc}") as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(INFER)(message("a"), timeout=10)
    assert config.count(" ssl-min-ver TLSv1.2") == 2


def wrapped(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What Ray would start, with a program in HAProxy's place that says how it was called."""
    cluster_environment.write_haproxy_wrapper(folder, "/bin/echo")
    return subprocess.run(
        [folder / "haproxy", *arguments], capture_output=True, text=True, env=variables, cwd="/", check=False
    )


def test_the_wrapper_edits_the_file_and_becomes_haproxy(tmp_path: Path, config: str) -> None:
    path = tmp_path / "a b.cfg"
    path.write_text(config)
    path.chmod(0o640)
    for _ in range(2):
        done = wrapped(tmp_path, "-db", "-f", str(path), "-sf", "12", TIDEGATE_TLS_CERT="/some.pem")
        assert (done.stdout, done.stderr) == (f"-db -f {path} -sf 12\n", "")
        assert path.read_text() == edited(config, Options(tls_cert="/some.pem"))
    assert path.stat().st_mode & 0o777 == 0o640
    assert {one.name for one in tmp_path.iterdir()} == {"haproxy", "a b.cfg"}


def test_the_wrapper_becomes_haproxy_whatever_it_finds(tmp_path: Path) -> None:
    strange, binary = tmp_path / "strange", tmp_path / "binary"
    strange.write_text("global\n")
    binary.write_bytes(b"\xff\xfe")
    for path, said in [
        (strange, "Not edited: loopback stats: no section"),
        (binary, "stays"),
        (tmp_path / "no", "No "),
    ]:
        done = wrapped(tmp_path, "-f", str(path))
        assert done.stdout == f"-f {path}\n"
        assert said in done.stderr
        assert all(line.startswith("tidegate-haproxy: ") for line in done.stderr.splitlines())


def test_requests_are_logged_where_somebody_chose_a_place(config: str) -> None:
    assert "option dontlog-normal" in edited(config, Options())
    assert "option dontlog-normal" not in edited(config.replace("127.0.0.1:514", "/dev/log"), Options())


def test_nothing_is_served_without_the_tls_that_is_asked_for(tmp_path: Path, config: str) -> None:
    strange = tmp_path / "strange"
    strange.write_text(config.replace("frontend http_frontend", "frontend other"))
    for path in (strange, tmp_path / "no"):
        done = wrapped(tmp_path, "-f", str(path), TIDEGATE_TLS_CERT="/some.pem")
        assert (done.stdout, done.returncode) == ("", 1)
        assert "nothing is served without TLS" in done.stderr


def test_the_console_script_does_not_find_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/bin/false")
    monkeypatch.setattr("sys.argv", ["tidegate-haproxy", "-v"])
    monkeypatch.setattr("os.execv", lambda *call: started.append(call))
    haproxy.main()
    ((program, arguments),) = started
    assert program.endswith("haproxy")
    assert arguments == [program, "-v"]
