from __future__ import annotations

import json
import logging
import pickle
import shlex
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from http_endpoint import FIRST, Endpoint, drop, rows, serving, status
from ports import free_port
from tidegate import client_retries, protocol
from tidegate.client import Client, curl_line
from tidegate.errors import (
    AccessError,
    ClusterError,
    LimitError,
    NotFoundError,
    RequestError,
    TidegateError,
    UnavailableError,
)
from tidegate.protocol import Signature, TensorSpec

SECOND = Signature((TensorSpec("x", "INT64", (-1, 2)), FIRST.inputs[1]), FIRST.outputs)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as endpoint:
        yield endpoint


@pytest.fixture
def client(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(client_retries, "DELAYS_S", (0.01, 0.01, 0.01))
    monkeypatch.delenv("TIDEGATE_API_KEY", raising=False)
    with Client(endpoint.url, timeout_s=10) as client:
        yield client


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


def test_rows_of_any_length_come_back_in_order(client: Client, endpoint: Endpoint) -> None:
    endpoint.signature = Signature((TensorSpec("x", "FP64", (-1, -1)), FIRST.inputs[1]), FIRST.outputs)
    series = [[1.0, 2.0], [3.0], [4.0, 5.0], [6.0, 7.0, 8.0]]
    answer = client.predict("m", {"x": series, "word": ["a", "b", "c", "d"]})
    assert answer["total"].tolist() == [3.0, 3.0, 9.0, 21.0]
    assert answer["echo"].tolist() == ["a", "b", "c", "d"]
    assert sorted(endpoint.rows) == [1, 1, 2]
    with pytest.raises(RequestError, match="no array"):
        client.predict("m", {"x": [[1.0], ["a", 2.0]], "word": ["a", "b"]})


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
    client.predict("m", rows(1))
    endpoint.calls.clear()
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


def test_statistics_are_those_of_the_endpoint(client: Client, endpoint: Endpoint) -> None:
    assert client.statistics("m") == {"name": "m", "version": "1", "inference_count": 3}
    endpoint.faults = [status(200, b'{"model_stats": []}')]
    with pytest.raises(ClusterError, match="no statistics"):
        client.statistics("m")


def test_unknown_endpoints_are_not_found(client: Client) -> None:
    for call in (client.ready, client.metadata, lambda name: client.predict(name, rows(1))):
        with pytest.raises(NotFoundError, match="no /v2/models/nope%2Fx"):
            call("nope/x")


@pytest.mark.parametrize("fault", [drop, status(503), status(429), status(503, Retry_After="0")])
def test_passing_trouble_is_retried_and_logged(
    client: Client, endpoint: Endpoint, caplog: pytest.LogCaptureFixture, fault: Any
) -> None:
    client.metadata("m")
    endpoint.faults = [fault] * 3
    with caplog.at_level(logging.WARNING):
        assert client.predict("m", rows(1))["total"].tolist() == [1.0]
    assert endpoint.calls.count("POST /v2/models/m/infer") == 4
    assert sum("trying again" in record.message for record in caplog.records) == 3


@pytest.mark.parametrize(
    ("fault", "kind"), [(drop, UnavailableError), (status(503), UnavailableError), (status(429), LimitError)]
)
def test_lasting_trouble_ends_as_unavailable(client: Client, endpoint: Endpoint, fault: Any, kind: type) -> None:
    client.metadata("m")
    endpoint.faults = [fault] * 20
    with pytest.raises(UnavailableError) as caught:
        client.predict("m", rows(1))
    assert type(caught.value) is kind
    assert caught.value.retry_after_s is None
    assert endpoint.calls.count("POST /v2/models/m/infer") == 4


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (status(400), RequestError, "as told"),
        (status(404), NotFoundError, "as told"),
        (status(413, b"too big"), RequestError, "413: too big"),
        (status(401), AccessError, "as told; pass api_key, or set TIDEGATE_API_KEY"),
        (status(403), AccessError, "as told$"),
        (status(500), ClusterError, "as told"),
        (status(502, b"<html>"), UnavailableError, "502: <html>"),
        (status(504), UnavailableError, "as told"),
        (status(302, b""), ClusterError, "302: nothing"),
        (status(400, b"[]"), RequestError, "400"),
        (status(200, b"<html>"), ClusterError, "no inference response"),
    ],
)
def test_each_status_has_its_error(
    client: Client, endpoint: Endpoint, fault: Any, kind: type[TidegateError], message: str
) -> None:
    client.predict("m", rows(1))
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


# Tensors as bytes


def test_tensors_travel_as_bytes_both_ways(client: Client, endpoint: Endpoint) -> None:
    client.predict("m", rows(3))
    assert endpoint.forms == ["binary"]
    assert endpoint.headers[-1]["Content-Type"] == "application/octet-stream"
    assert endpoint.headers[-1]["Accept-Encoding"] == "identity"


def test_a_server_that_takes_only_json_is_asked_so_from_then_on(client: Client, endpoint: Endpoint) -> None:
    endpoint.takes_binary = False
    assert client.predict("m", rows(300))["total"].tolist() == rows(300)["x"].sum(axis=1).tolist()
    client.predict("m", rows(1))
    assert endpoint.forms == ["binary", "JSON", "JSON", "JSON"]
    with Client(endpoint.url) as other:
        other.predict("m", rows(1))
    assert endpoint.forms[-2:] == ["binary", "JSON"]


def test_a_first_request_that_is_wrong_in_both_forms_says_nothing_of_the_server(
    client: Client, endpoint: Endpoint
) -> None:
    with pytest.raises(RequestError, match=r"has the shape \[1, 3\]"):
        client.predict("m", {"x": [[1, 2, 3]], "word": ["a"]})
    client.predict("m", rows(1))
    assert endpoint.forms == ["binary", "JSON", "binary"]


def test_a_server_that_took_bytes_is_never_asked_otherwise(client: Client, endpoint: Endpoint) -> None:
    client.predict("m", rows(1))
    endpoint.takes_binary = False
    with pytest.raises(RequestError):
        client.predict("m", rows(1))
    assert set(endpoint.forms) == {"binary"}


@pytest.mark.parametrize("as_list", [False, True])
def test_large_rows_travel_a_few_at_a_time(client: Client, endpoint: Endpoint, as_list: bool) -> None:
    endpoint.signature = Signature((TensorSpec("x", "FP32", (-1, -1)), FIRST.inputs[1]), FIRST.outputs)
    x = np.ones((40, 100_000), np.float32)
    answer = client.predict("m", {"x": x.tolist() if as_list else x, "word": [str(i) for i in range(40)]})
    assert answer["total"].tolist() == [100_000.0] * 40
    assert answer["echo"].tolist() == [str(i) for i in range(40)]
    assert sum(endpoint.rows) == 40
    assert len(endpoint.forms) == len(endpoint.rows), "none was refused as too large"
    assert max(endpoint.rows) == (20 if as_list else 10)


def test_a_request_that_is_too_large_for_the_server_is_divided(client: Client, endpoint: Endpoint) -> None:
    endpoint.body_bytes = 1000
    inputs = rows(100)
    assert client.predict("m", inputs)["echo"].tolist() == inputs["word"]
    assert sum(endpoint.rows) == 100
    endpoint.body_bytes = 10
    with pytest.raises(RequestError, match="too large"):
        client.predict("m", inputs)


# Keys


def test_the_key_is_sent_and_shown_nowhere(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_retries, "DELAYS_S", (0.01,))
    monkeypatch.setenv("TIDEGATE_API_KEY", "tg_of-the-environment\n")
    endpoint.key = "tg_of-the-environment"
    with caplog.at_level(logging.DEBUG), Client(endpoint.url) as client:
        endpoint.faults = [status(503)]
        assert client.models() == ["m", "n"]
        endpoint.key = "another"
        with pytest.raises(AccessError, match="no key of ours") as caught:
            client.models()
    with Client(endpoint.url, api_key="another") as other:
        assert other.models() == ["m", "n"]
    with Client(endpoint.url, api_key="") as without, pytest.raises(AccessError, match="TIDEGATE_API_KEY"):
        without.models()
    told = f"{client!r} {client._calls!r} {caught.value!r} {caplog.text}"
    assert "trying again" in told
    assert "tg_of" not in told


@pytest.mark.parametrize("key", ["two words", "tg_\nX-Other: 1", "tg_é"])
def test_what_can_be_no_key_is_refused_unseen(key: str) -> None:
    with pytest.raises(AccessError, match="no key has") as caught:
        Client(api_key=key)
    assert key not in str(caught.value)


def test_a_password_in_the_url_is_not_shown() -> None:
    port = free_port()
    with Client(f"http://me:secret@127.0.0.1:{port}") as client:
        with pytest.raises(ClusterError, match=f"http://127.0.0.1:{port}") as caught:
            client.models()
        assert "secret" not in f"{client!r} {client.url} {caught.value}"


# When to try again


def test_the_client_waits_as_long_as_the_server_says(client: Client, endpoint: Endpoint) -> None:
    endpoint.faults = [status(503, Retry_After="1")]
    started = time.monotonic()
    assert client.models() == ["m", "n"]
    assert 1.0 <= time.monotonic() - started < 1.6


def test_the_client_does_not_wait_beyond_its_budget(endpoint: Endpoint) -> None:
    endpoint.faults = [status(429, Retry_After="2")] * 9
    with Client(endpoint.url, retry_s=0.5) as client:
        started = time.monotonic()
        with pytest.raises(LimitError, match="as told") as caught:
            client.models()
        assert time.monotonic() - started < 0.4
    assert caught.value.retry_after_s == 2.0
    assert endpoint.calls == ["GET /v2/models"]


def test_many_short_waits_end_with_the_budget(endpoint: Endpoint) -> None:
    endpoint.faults = [status(503, Retry_After="0")] * 99
    with Client(endpoint.url, retry_s=0.5) as client:
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            client.models()
        assert 0.4 < time.monotonic() - started < 1.0
    assert 4 < len(endpoint.calls) < 15


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "cert.pem", folder / "key.pem"
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    line += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(made[0]), "-keyout", str(made[1])]
    subprocess.run(line, check=True, capture_output=True)
    return made


def test_a_certificate_is_trusted_by_its_authority_alone(endpoint: Endpoint, certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    # The handshake in the connection's own thread: one that fails must not end the server.
    endpoint.server.socket = context.wrap_socket(
        endpoint.server.socket, server_side=True, do_handshake_on_connect=False
    )
    url = endpoint.url.replace("http:", "https:")
    with Client(url, ca_file=certificate[0]) as client:
        assert client.models() == ["m", "n"]
    with Client(url, verify=False) as client:
        assert client.models() == ["m", "n"]
    with Client(url) as client, pytest.raises(ClusterError, match=r"certificate that is not trusted here.*ca_file"):
        client.models()
    with pytest.raises(ClusterError, match=r"none\.pem holds no certificates"):
        Client(url, ca_file="none.pem")


# Addresses


def test_a_proxy_of_the_environment_stays_out_of_loopback(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with Client(endpoint.url + "/") as client:
        assert client.models() == ["m", "n"]


@pytest.mark.parametrize("kind", [UnavailableError, LimitError])
def test_when_to_try_again_survives_pickling(kind: type[UnavailableError]) -> None:
    again = pickle.loads(pickle.dumps(kind("busy", remedy="wait", retry_after_s=2.5)))  # noqa: S301
    assert (type(again), str(again), again.retry_after_s) == (kind, "busy; wait", 2.5)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ClusterError, match="no URL"):
        Client(url)


def test_the_curl_line_survives_a_shell() -> None:
    body = protocol.encode_request({"word": ["it's $HOME `x` \\ \" !\n", "@é"]}).content
    line = curl_line("http://127.0.0.1:8000/", "a b", body)
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    script = f'curl() {{ {shlex.quote(sys.executable)} -c {shlex.quote(show)} "$@"; }}\n{line}'
    shell = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    arguments = json.loads(shell.stdout)
    assert arguments[arguments.index("--data-raw") + 1].encode() == body
    assert arguments[-1] == "http://127.0.0.1:8000/v2/models/a%20b/infer"


def test_the_client_loads_neither_ray_nor_torch() -> None:
    heavy = ("ray", "torch", "pandas", "pyarrow")
    code = f"import sys, tidegate as tg; tg.Client, tg.AsyncClient; print([m for m in {heavy} if m in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"
