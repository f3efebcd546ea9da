from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from ports import free_port
from tidegate import client as client_module
from tidegate import protocol
from tidegate.client import Client, curl_line
from tidegate.errors import ClusterError, NotFoundError, RequestError, TidegateError, UnavailableError
from tidegate.protocol import Signature, TensorSpec

FIRST = Signature(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("word", "BYTES", (-1,))),
    (TensorSpec("total", "FP32", (-1,)), TensorSpec("echo", "BYTES", (-1,))),
)
SECOND = Signature((TensorSpec("x", "INT64", (-1, 2)), FIRST.inputs[1]), FIRST.outputs)


class Endpoint:
    """A server of one endpoint, `m`, that sums `x` and echoes `word`; `faults` come before its answers."""

    def __init__(self) -> None:
        self.signature = FIRST
        self.max_rows = 256
        self.calls: list[str] = []
        self.rows: list[int] = []
        self.faults: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        known = {
            "/v2/health/live": protocol.live_body,
            "/v2/health/ready": lambda: protocol.ready_body(True),
            "/v2/models": lambda: protocol.models_body({"m": True, "n": False}),
            "/v2/models/m": lambda: protocol.metadata_body("m", ["1", "2"], self.signature),
            "/v2/models/m/ready": lambda: protocol.ready_body(True, "m"),
            "/v2/models/m/infer": lambda: self.infer(body),
        }
        if path not in known:
            return 404, protocol.error_body(f"no {path}")
        try:
            return 200, known[path]()
        except TidegateError as error:
            return error.http_status, protocol.error_body(str(error))

    def infer(self, body: bytes) -> bytes:
        request = protocol.parse_request(body, self.signature, max_rows=self.max_rows)
        x, word = request.inputs["x"], request.inputs["word"]
        self.rows.append(len(x))
        outputs = {"total": x.sum(axis=1).astype(np.float32), "echo": word}
        return protocol.encode_response("m", "1", self.signature, outputs, request)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                endpoint.calls.append(f"{self.command} {self.path}")
                if endpoint.faults:
                    endpoint.faults.pop(0)(self)
                else:
                    send(self, *endpoint.answer(self.path, body))

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def status(code: int, body: bytes = b'{"error": "as told"}') -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: send(handler, code, body)


def drop(handler: BaseHTTPRequestHandler) -> None:
    """Ends the connection without an answer."""
    handler.close_connection = True


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.02,))
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    thread.join()
    endpoint.server.server_close()


@pytest.fixture
def client(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(client_module, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    with Client(endpoint.url, timeout_s=10) as client:
        yield client


def rows(count: int) -> dict[str, Any]:
    return {"x": np.arange(2 * count).reshape(count, 2), "word": [f"w{i}" for i in range(count)]}


def test_what_a_server_tells_of_itself(client: Client) -> None:
    assert client.live()
    assert client.ready()
    assert client.ready("m")
    assert client.models() == ["m", "n"]
    metadata = client.metadata("m")
    assert (metadata.name, metadata.versions, metadata.platform) == ("m", ("1", "2"), "tidegate")
    assert metadata.signature == FIRST


def test_predictions_come_back_in_order_and_datatype(client: Client) -> None:
    answer = client.predict("m", {"x": [[1, 2], [3, 4.5]], "word": ["é", ""]})
    np.testing.assert_array_equal(answer["total"], np.array([3, 7.5], np.float32), strict=True)
    assert answer["echo"].tolist() == ["é", ""]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_many_rows_travel_in_chunks(client: Client, endpoint: Endpoint, count: int) -> None:
    inputs = rows(count)
    answer = client.predict("m", inputs)
    assert answer["total"].tolist() == inputs["x"].sum(axis=1).tolist()
    assert answer["echo"].tolist() == inputs["word"]
    assert sum(endpoint.rows) == count
    assert max(endpoint.rows) <= 256
    assert len(endpoint.rows) == -(-count // 256)


def test_the_signature_is_read_once(client: Client, endpoint: Endpoint) -> None:
    client.predict("m", rows(1))
    client.predict("m", rows(1))
    assert endpoint.calls.count("GET /v2/models/m") == 1


def test_a_moved_endpoint_is_followed(client: Client, endpoint: Endpoint) -> None:
    client.predict("m", rows(1))
    endpoint.signature = SECOND
    # The cached signature makes these FP32, which the new version refuses.
    assert client.predict("m", rows(1))["total"].tolist() == [1.0]
    assert endpoint.calls.count("GET /v2/models/m") == 2
    endpoint.signature = FIRST
    assert client.predict("m", {"x": [[0.5, 1.0]], "word": ["a"]})["total"].tolist() == [1.5]


def test_a_refused_request_is_sent_once(client: Client, endpoint: Endpoint) -> None:
    client.metadata("m")
    with pytest.raises(RequestError, match=r"has the shape \[1, 3\]"):
        client.predict("m", {"x": [[1, 2, 3]], "word": ["a"]})
    assert endpoint.calls.count("POST /v2/models/m/infer") == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no rows"),
        ({"x": [], "word": []}, "the same number in each, at least 1"),
        ({"x": [[1, 2]], "word": ["a", "b"]}, "'word': 2"),
        ({"x": 1.0, "word": ["a"]}, "single value"),
        ({"x": [[1, 2]], "word": "a"}, "single value"),
        ({"x": [[1, 2]], "word": [1]}, "holds INT64; expected BYTES"),
        ({"x": [[1, 2]], "word": ["a", 1][:1], "other": [1]}, "no input 'other'"),
        ({"x": [[1, 2]]}, 'lacks "word"'),
    ],
)
def test_bad_inputs_are_request_errors(client: Client, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        client.predict("m", inputs)


def test_unknown_endpoints_are_not_found(client: Client) -> None:
    for call in (client.ready, client.metadata, lambda name: client.predict(name, rows(1))):
        with pytest.raises(NotFoundError, match="no /v2/models/nope%2Fx"):
            call("nope/x")


@pytest.mark.parametrize("fault", [drop, status(503)])
def test_passing_trouble_is_retried_and_logged(
    client: Client, endpoint: Endpoint, caplog: pytest.LogCaptureFixture, fault: Any
) -> None:
    client.metadata("m")
    endpoint.faults = [fault] * 3
    with caplog.at_level(logging.WARNING):
        assert client.predict("m", rows(1))["total"].tolist() == [1.0]
    assert endpoint.calls.count("POST /v2/models/m/infer") == 4
    assert sum("trying again" in record.message for record in caplog.records) == 3


@pytest.mark.parametrize("fault", [drop, status(503)])
def test_lasting_trouble_ends_as_unavailable(client: Client, endpoint: Endpoint, fault: Any) -> None:
    client.metadata("m")
    endpoint.faults = [fault] * 20
    with pytest.raises(UnavailableError):
        client.predict("m", rows(1))
    assert endpoint.calls.count("POST /v2/models/m/infer") == 4


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (status(400), RequestError, "as told"),
        (status(404), NotFoundError, "as told"),
        (status(413, b"too big"), RequestError, "413: too big"),
        (status(429), UnavailableError, "as told"),
        (status(500), ClusterError, "as told"),
        (status(502, b"<html>"), UnavailableError, "502: <html>"),
        (status(302, b""), ClusterError, "302: nothing"),
        (status(400, b"[]"), RequestError, "400"),
        (status(200, b"<html>"), ClusterError, "no inference response"),
    ],
)
def test_each_status_has_its_error(
    client: Client, endpoint: Endpoint, fault: Any, kind: type[TidegateError], message: str
) -> None:
    client.metadata("m")
    endpoint.faults = [fault]
    with pytest.raises(TidegateError, match=message) as caught:
        client.predict("m", rows(1))
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"models": "m"}', b'{"models": [1]}', b'{"models": [{}]}', b'{"inputs": []}']
)
def test_strange_answers_are_cluster_errors(client: Client, endpoint: Endpoint, body: bytes) -> None:
    for call in (client.models, lambda: client.metadata("m")):
        endpoint.faults = [status(200, body)]
        with pytest.raises(ClusterError, match="Check that the URL"):
            call()


@pytest.mark.parametrize("fault", [drop, status(503), status(200, b'{"live": false, "ready": false}')])
def test_a_probe_that_fails_says_false_at_once(client: Client, endpoint: Endpoint, fault: Any) -> None:
    for probe in (client.live, client.ready, lambda: client.ready("m")):
        endpoint.calls.clear()
        endpoint.faults = [fault]
        assert probe() is False
        assert len(endpoint.calls) == 1


def test_nothing_listening_has_a_remedy() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client:
        assert not client.live()
        assert not client.ready("m")
        with pytest.raises(ClusterError, match=r"Nothing answers.*tidegate up"):
            client.predict("m", rows(1))


def test_a_slow_answer_is_unavailable_and_not_asked_for_again(endpoint: Endpoint) -> None:
    answered = threading.Event()
    endpoint.faults = [lambda handler: (answered.wait(10), drop(handler))[0]]  # type: ignore[list-item, return-value]
    try:
        with Client(endpoint.url, timeout_s=0.2) as client, pytest.raises(UnavailableError, match="in time"):
            client.models()
        assert endpoint.calls == ["GET /v2/models"]
    finally:
        answered.set()


def test_a_proxy_of_the_environment_stays_out_of_loopback(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with Client(endpoint.url + "/") as client:
        assert client.models() == ["m", "n"]


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ClusterError, match="no URL"):
        Client(url)


def test_the_curl_line_survives_a_shell() -> None:
    body = protocol.encode_request({"word": ["it's $HOME `x` \\ \" !\n", "@é"]})
    line = curl_line("http://127.0.0.1:8000/", "a b", body)
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    script = f'curl() {{ {shlex.quote(sys.executable)} -c {shlex.quote(show)} "$@"; }}\n{line}'
    shell = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    arguments = json.loads(shell.stdout)
    assert arguments[arguments.index("--data-raw") + 1].encode() == body
    assert arguments[-1] == "http://127.0.0.1:8000/v2/models/a%20b/infer"


def test_the_client_loads_neither_ray_nor_torch() -> None:
    code = "import sys, tidegate.client; print([m for m in ('ray', 'torch', 'pandas', 'pyarrow') if m in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"
