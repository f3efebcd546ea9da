"""The protocol over HTTP on a real server, around a tiny model: what a client of one endpoint meets."""

from __future__ import annotations

import asyncio
import gc
import gzip
import threading
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from tidegate import keys
from tidegate.protocol import HEADER_LENGTH, encode_request, parse_response
from tidegate.serving.batching import Rows
from tidegate.serving.compression import WORTH_BYTES
from tidegate.serving.exchange import Cancel, Request, Response
from tidegate.serving.gate import Access
from tidegate.serving.http_api import HttpApi
from tidegate.serving.http_server import HttpServer
from tidegate.serving.ledger import Account, Grant, Ledger
from tidegate.serving.limits import Limits
from tidegate.serving.quota import Asks
from tiny_endpoint import GOOD, SIGNATURE, Tiny

WAIT_S = 20.0
PATH = "/v2/models/tiny"
ANSWER = [
    {"name": "sum", "datatype": "FP32", "shape": [2], "data": [13.0, 27.0]},
    {"name": "shout", "datatype": "BYTES", "shape": [2], "data": ["A", "GRÜSSE"]},
]


class Endpoint(Tiny):
    """A served endpoint `tiny`, and a client of it. The model computes only while the gate is open."""

    http: httpx.AsyncClient

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self.opened = threading.Event()
        self.opened.set()
        self.entered = threading.Semaphore(0)
        self.ledger = Ledger()
        self.ledger_answers = asyncio.Event()
        self.ledger_answers.set()
        self.api = HttpApi(self.inference)

    def predict(self, inputs: Rows) -> Rows:
        self.entered.release()
        assert self.opened.wait(WAIT_S)
        return super().predict(inputs)

    async def renew(self, asks: Asks) -> dict[Account, Grant]:
        await self.ledger_answers.wait()
        return self.ledger.renew(time.monotonic(), "a", asks)

    async def infer(self, body: Any = None, path: str = "/infer", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else orjson.dumps(body if body is not None else asked())
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(PATH + path, content=content, headers=named)

    def hand(self, answers: list[Response], **headers: str) -> Cancel:
        """Hands a request to the API itself, which can then be told that its client has gone."""
        named = {name.encode(): value.encode() for name, value in headers.items()}
        cancel = self.api.handle(Request("POST", f"{PATH}/infer", named, orjson.dumps(asked())), answers.append)
        assert cancel is not None
        return cancel

    async def occupy(self) -> asyncio.Task[httpx.Response]:
        """Makes the model compute on one request, and returns when it does."""
        self.opened.clear()
        first = asyncio.create_task(self.infer())
        assert await asyncio.to_thread(self.entered.acquire, timeout=WAIT_S)
        return first

    async def until_waiting(self, count: int) -> None:
        batcher = self.inference.ready().batcher
        await until(lambda: batcher.num_waiting == count)


def run(test: Callable[[Endpoint], Awaitable[None]], access: Access | None = None, *, loads: bool = True) -> None:
    async def bounded() -> None:
        endpoint = Endpoint(access or Access())
        if loads:
            endpoint.load()
        changes: list[int] = []
        server = HttpServer(endpoint.api.handle, lambda: endpoint.limits, changes.append)
        port = await server.start("127.0.0.1", 0)
        serving = asyncio.create_task(server.run())
        renewing = asyncio.create_task(endpoint.quota.run())
        url = f"http://127.0.0.1:{port}"
        try:
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=WAIT_S) as endpoint.http:
                await asyncio.wait_for(test(endpoint), WAIT_S)
        finally:
            endpoint.opened.set()
            renewing.cancel()
            server.should_exit = True
            await serving
        assert sum(changes) == 0
        assert server.buffered == 0

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def asked(**changes: Any) -> dict[str, Any]:
    """A request for GOOD; `changes` replace values of inputs, and rows follow."""
    values = {**GOOD, **changes}
    inputs = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": [len(values[spec.name]), *spec.shape[1:]],
            "data": values[spec.name],
        }
        for spec in SIGNATURE.inputs
    ]
    return {"id": "seven", "inputs": inputs}


def rows(number: int) -> dict[str, Any]:
    """One row, that no other number has."""
    return asked(x=[[number, 0.0]], word=[f"w{number}"], n=[0])


def error(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    return str(answer.json()["error"])


def test_the_answer_is_of_the_request_and_says_which_version_gave_it() -> None:
    async def test(endpoint: Endpoint) -> None:
        for path in ("/infer", "/versions/3/infer"):
            answer = await endpoint.infer(path=path)
            assert answer.status_code == 200
            assert answer.json() == {"model_name": "tiny", "model_version": "3", "id": "seven", "outputs": ANSWER}
        answer = await endpoint.infer({**asked(), "outputs": [{"name": "shout"}]})
        assert answer.json()["outputs"] == ANSWER[1:]
        assert endpoint.meter.rows == 6
        assert endpoint.meter.traffic[""].statuses == {200: 3}

    run(test)


def test_tensors_travel_as_bytes_there_and_back() -> None:
    async def test(endpoint: Endpoint) -> None:
        body = encode_request(GOOD, SIGNATURE, as_json=False)
        answer = await endpoint.infer(body.content, inference_header_content_length=str(body.header_length))
        assert answer.headers["content-type"] == "application/octet-stream"
        outputs = parse_response(answer.content, int(answer.headers[HEADER_LENGTH]))
        assert outputs["sum"].tolist() == [13.0, 27.0]
        assert outputs["shout"].tolist() == ["A", "GRÜSSE"]
        # Bytes there, JSON back.
        plain = await endpoint.infer()
        assert HEADER_LENGTH not in plain.headers
        assert plain.headers["content-type"] == "application/json"

    run(test)


@pytest.mark.parametrize(
    ("length", "words"), [("x", "'x'"), ("-1", "'-1'"), ("1" * 5000, "111"), ("999999", "999999"), ("3", "not JSON")]
)
def test_a_wrong_length_of_the_json_is_refused(length: str, words: str) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert words in error(await endpoint.infer(inference_header_content_length=length), 400)

    run(test)


def test_what_it_tells_of_itself() -> None:
    async def test(endpoint: Endpoint) -> None:
        async def told(path: str) -> Any:
            answer = await endpoint.http.get(PATH + path)
            assert answer.status_code == 200
            head = await endpoint.http.head(PATH + path)
            assert (head.status_code, head.content) == (200, b"")
            return answer.json()

        for path in ("", "/", "/versions/3"):
            assert await told(path) == {
                "name": "tiny",
                "versions": ["3"],
                "platform": "tidegate",
                **SIGNATURE.to_json(),
            }
        assert await told("/ready") == await told("/versions/3/ready") == {"name": "tiny", "ready": True}
        assert (await told("/config"))["max_batch_size"] == 4
        for _ in range(3):
            await endpoint.infer()
        await endpoint.infer(b"no JSON")
        (stats,) = (await told("/stats"))["model_stats"]
        assert (stats["name"], stats["version"]) == ("tiny", "3")
        assert (stats["inference_count"], stats["execution_count"]) == (6, 3)
        assert stats["inference_stats"]["success"]["count"] == 3
        assert stats["inference_stats"]["fail"]["count"] == 1
        assert stats["batch_stats"][0]["batch_size"] == 2

    run(test)


def test_statistics_are_those_of_all_replicas_of_the_same_version() -> None:
    async def test(endpoint: Endpoint) -> None:
        await endpoint.infer()

        async def others() -> list[dict[str, Any]]:
            return [endpoint.meter.statistics("tiny", version) for version in ("3", "2", "3")]

        endpoint.inference.others = others
        (stats,) = (await endpoint.http.get(f"{PATH}/stats")).json()["model_stats"]
        assert (stats["inference_count"], stats["execution_count"]) == (6, 3)

    run(test)


def test_before_a_version_is_loaded_it_is_not_ready() -> None:
    async def test(endpoint: Endpoint) -> None:
        for answer in (await endpoint.infer(), *[await endpoint.http.get(PATH + p) for p in ("", "/ready", "/stats")]):
            assert "loading" in error(answer, 503)
            assert answer.headers["retry-after"] == "1"
        assert endpoint.meter.traffic[""].statuses == {503: 1}
        endpoint.load()
        assert (await endpoint.infer()).status_code == 200

    run(test, loads=False)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", f"{PATH}/infer", 405, "POST"),
        ("POST", PATH, 405, "GET"),
        ("POST", f"{PATH}/ready", 405, "GET or HEAD"),
        ("DELETE", f"{PATH}/stats", 405, "GET or HEAD"),
        ("GET", f"{PATH}/other", 404, "no such path"),
        ("GET", f"{PATH}/infer/more", 404, "no such path"),
        ("POST", f"{PATH}infer", 404, "no such path"),
        ("GET", "/v2/models/other", 404, "no such path"),
        ("GET", "/", 404, "no such path"),
        ("GET", f"{PATH}/versions/2", 404, "version 3 is"),
        ("GET", f"{PATH}/versions/03/ready", 404, "version 3 is"),
        ("GET", f"{PATH}/versions/", 404, "version 3 is"),
        ("POST", f"{PATH}/versions/2/infer", 404, "version 3 is"),
        ("POST", f"{PATH}/versions//infer", 404, "version 3 is"),
    ],
)
def test_paths_and_methods_that_are_not_there(method: str, path: str, status: int, words: str) -> None:
    async def test(endpoint: Endpoint) -> None:
        answer = await endpoint.http.request(method, path)
        assert words in error(answer, status)
        assert ("allow" in answer.headers) == (status == 405)

    run(test)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"[]", "object"),
        ({"inputs": []}, "empty list"),
        ({"inputs": asked()["inputs"][:2]}, 'lacks "n"'),
        (asked(n=[1]), "differ in rows"),
        (asked(n=["a", "b"]), '"n"'),
        (asked(x=[[1.0, 2.0]] * 9, word=["a"] * 9, n=[1] * 9), "at most 8"),
        ({**asked(), "outputs": [{"name": "other"}]}, "other"),
        (asked(word=["no", "no"]), "a word that is not liked"),
    ],
)
def test_requests_that_do_not_fit_are_told_why(body: Any, words: str) -> None:
    async def test(endpoint: Endpoint) -> None:
        assert words in error(await endpoint.infer(body), 400)
        assert endpoint.meter.traffic[""].statuses == {400: 1}
        assert (await endpoint.infer()).status_code == 200

    run(test)


def test_a_model_that_fails_is_logged_and_its_client_learns_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async def test(endpoint: Endpoint) -> None:
        answer = await endpoint.infer(asked(word=["boom", "a"]))
        assert error(answer, 500) == "internal error; see the replica's log"
        assert (await endpoint.infer()).status_code == 200
        assert endpoint.meter.traffic[""].statuses == {500: 1, 200: 1}

    run(test)
    assert "ZeroDivisionError" in caplog.text


def test_a_model_that_answers_in_another_form_is_an_error_and_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Endpoint):
        def predict(self, inputs: Rows) -> Rows:
            return {**super().predict(inputs), "sum": np.zeros((len(inputs["n"]), 7), np.float32)}

    async def test(endpoint: Endpoint) -> None:
        endpoint.__class__ = Wrong
        endpoint.load()
        assert "sum" in error(await endpoint.infer(), 500)
        assert endpoint.meter.traffic[""].statuses == {500: 1}

    run(test)


def test_bodies_may_be_packed_both_ways() -> None:
    async def test(endpoint: Endpoint) -> None:
        long = asked(word=["a" * WORTH_BYTES, "b"])
        plain = await endpoint.infer(long, accept_encoding="identity")
        assert "content-encoding" not in plain.headers
        for name, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
            answer = await endpoint.infer(pack(orjson.dumps(long)), content_encoding=name, accept_encoding=name)
            assert answer.headers["content-encoding"] == name
            assert int(answer.headers["content-length"]) < WORTH_BYTES
            assert answer.json() == plain.json()
        # A body as bytes is unpacked before it is parted.
        body = encode_request(GOOD, SIGNATURE, as_json=False)
        length = str(body.header_length)
        packed = await endpoint.infer(
            gzip.compress(body.content), content_encoding="gzip", inference_header_content_length=length
        )
        assert parse_response(packed.content, int(packed.headers[HEADER_LENGTH]))["sum"].tolist() == [13.0, 27.0]

    run(test)


def test_a_packed_body_has_the_limit_of_an_unpacked_one() -> None:
    async def test(endpoint: Endpoint) -> None:
        bomb = gzip.compress(b" " * (endpoint.limits.body_bytes + 1))
        assert str(endpoint.limits.body_bytes) in error(await endpoint.infer(bomb, content_encoding="gzip"), 413)
        assert "unpacked" in error(await endpoint.infer(b"{}", content_encoding="gzip"), 400)
        answer = await endpoint.infer(content_encoding="br")
        assert "br" in error(answer, 415)
        assert answer.headers["accept-encoding"] == "gzip, deflate"
        assert endpoint.meter.traffic[""].statuses == {413: 1, 400: 1, 415: 1}

    run(test)


def test_requests_that_come_together_share_a_pass_and_each_gets_its_own_answer() -> None:
    async def test(endpoint: Endpoint) -> None:
        first = await endpoint.occupy()
        others = [asyncio.create_task(endpoint.infer(rows(number))) for number in range(6)]
        await endpoint.until_waiting(6)
        endpoint.opened.set()
        assert (await first).json()["outputs"] == ANSWER
        for number, task in enumerate(others):
            total, shout = (await task).json()["outputs"]
            assert (total["data"], shout["data"]) == ([number], [f"W{number}"])
        assert {count: total.count for count, total in endpoint.meter.passes.items()} == {2: 2, 4: 1}
        # Each has its part of the pass: together they have the passes.
        device = endpoint.meter.traffic[""].device_seconds
        assert device == pytest.approx(sum(total.seconds for total in endpoint.meter.passes.values()))

    run(test)


def test_one_request_that_fails_does_not_fail_those_beside_it() -> None:
    async def test(endpoint: Endpoint) -> None:
        first = await endpoint.occupy()
        bad = asked(x=[[0.0, 0.0]], word=["no"], n=[0])
        others = [asyncio.create_task(endpoint.infer(body)) for body in (rows(1), bad, rows(2))]
        await endpoint.until_waiting(3)
        endpoint.opened.set()
        assert [(await task).status_code for task in (first, *others)] == [200, 200, 400, 200]

    run(test)


def test_a_full_queue_refuses_with_a_time_to_come_again() -> None:
    async def test(endpoint: Endpoint) -> None:
        endpoint.load(max_waiting=1)
        first = await endpoint.occupy()
        second = asyncio.create_task(endpoint.infer())
        await endpoint.until_waiting(1)
        answer = await endpoint.infer()
        assert "waiting already" in error(answer, 503)
        assert answer.headers["retry-after"] == "1"
        endpoint.opened.set()
        assert [(await task).status_code for task in (first, second)] == [200, 200]

    run(test)


def test_a_client_that_goes_leaves_the_queue_and_is_counted_once() -> None:
    async def test(endpoint: Endpoint) -> None:
        first = await endpoint.occupy()
        answers: list[Response] = []
        cancel = endpoint.hand(answers)
        await endpoint.until_waiting(1)
        cancel()
        cancel()
        await endpoint.until_waiting(0)
        endpoint.opened.set()
        assert (await first).status_code == 200
        assert (await endpoint.infer()).status_code == 200
        assert answers == []
        assert endpoint.meter.traffic[""].statuses == {499: 1, 200: 2}
        # The model was not asked for it.
        assert endpoint.meter.rows == 4

    run(test)


def test_a_client_that_goes_while_the_model_computes_gets_no_answer_and_harms_nobody() -> None:
    async def test(endpoint: Endpoint) -> None:
        endpoint.opened.clear()
        answers: list[Response] = []
        cancel = endpoint.hand(answers)
        assert await asyncio.to_thread(endpoint.entered.acquire, timeout=WAIT_S)
        cancel()
        endpoint.opened.set()
        assert (await endpoint.infer()).status_code == 200
        assert answers == []
        assert endpoint.meter.traffic[""].statuses == {499: 1, 200: 1}
        # What has been answered cannot be cancelled any more.
        late = endpoint.hand(answers)
        await until(lambda: answers != [])
        late()
        assert endpoint.meter.traffic[""].statuses == {499: 1, 200: 2}

    run(test)


def test_a_request_is_answered_by_the_version_that_read_it() -> None:
    async def test(endpoint: Endpoint) -> None:
        first = await endpoint.occupy()
        endpoint.load(4)
        endpoint.opened.set()
        assert (await first).json()["model_version"] == "3"
        assert (await endpoint.infer()).json()["model_version"] == "4"
        assert "version 4 is" in error(await endpoint.infer(path="/versions/3/infer"), 404)

    run(test)


@pytest.fixture(name="_home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))


@pytest.mark.usefixtures("_home")
def test_who_may_ask_what() -> None:
    _, good = keys.create("acme", endpoints=["tiny"])
    _, elsewhere = keys.create("acme", endpoints=["other"])

    async def test(endpoint: Endpoint) -> None:
        async def statuses(path: str) -> list[int]:
            shown = [{}, *({"authorization": f"Bearer {key}"} for key in ("tg_rubbish", elsewhere, good))]
            if path == "/infer":
                return [(await endpoint.infer(**headers)).status_code for headers in shown]
            return [(await endpoint.http.get(PATH + path, headers=headers)).status_code for headers in shown]

        for path in ("/infer", "", "/config", "/stats", "/nothing"):
            assert await statuses(path) == [401, 401, 403, 404 if path == "/nothing" else 200]
        assert await statuses("/ready") == [200] * 4
        answer = await endpoint.infer()
        assert answer.headers["www-authenticate"] == "Bearer"
        assert endpoint.meter.traffic["acme"].statuses == {200: 1}
        assert endpoint.meter.traffic[""].statuses == {401: 3, 403: 1}
        # Whoever may not ask learns nothing of the request or of the model.
        assert "key" in error(await endpoint.infer(b"no JSON"), 401)

    run(test, Access(is_required=True))


def limited(**limit: Any) -> Access:
    return Access(is_required=True, tenants={"acme": {"rate": None, "burst": 1.0, "concurrent": None, **limit}})


@pytest.mark.usefixtures("_home")
def test_a_tenants_limit_is_kept_and_what_ends_gives_its_place_back() -> None:
    _, key = keys.create("acme")
    shown = {"authorization": f"Bearer {key}"}

    async def test(endpoint: Endpoint) -> None:
        allowance = endpoint.quota.limit("acme")
        assert allowance is not None
        endpoint.opened.clear()
        first = asyncio.create_task(endpoint.infer(**shown))
        assert await asyncio.to_thread(endpoint.entered.acquire, timeout=WAIT_S)
        answer = await endpoint.infer(**shown)
        assert "more requests than" in error(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1
        endpoint.opened.set()
        assert (await first).status_code == 200
        assert allowance.used == 0
        # However a request ends.
        for body, status in ((b"no JSON", 400), (asked(word=["boom", "a"]), 500), (None, 200)):
            assert (await endpoint.infer(body, **shown)).status_code == status
            assert allowance.used == 0
        assert endpoint.meter.traffic["acme"].statuses == {200: 2, 429: 1, 400: 1, 500: 1}

    run(test, limited(concurrent=1))


@pytest.mark.usefixtures("_home")
def test_a_client_that_goes_while_its_limit_is_asked_for_takes_no_place() -> None:
    _, key = keys.create("acme")
    shown = {"authorization": f"Bearer {key}"}

    async def test(endpoint: Endpoint) -> None:
        allowance = endpoint.quota.limit("acme")
        assert allowance is not None
        answers: list[Response] = []
        endpoint.ledger_answers.clear()
        cancel = endpoint.hand(answers, **shown)
        await until(lambda: allowance.waiting == 1)
        cancel()
        endpoint.ledger_answers.set()
        await until(lambda: allowance.waiting == 0)
        assert (answers, allowance.used) == ([], 0)
        assert endpoint.meter.traffic["acme"].statuses == {499: 1}
        assert endpoint.meter.rows == 0
        assert (await endpoint.infer(**shown)).status_code == 200

    run(test, limited(concurrent=1))


@pytest.mark.usefixtures("_home")
def test_a_client_that_goes_before_its_limit_refuses_it_is_told_nothing() -> None:
    _, key = keys.create("acme")
    shown = {"authorization": f"Bearer {key}"}

    async def test(endpoint: Endpoint) -> None:
        allowance = endpoint.quota.limit("acme")
        assert allowance is not None
        assert (await endpoint.infer(**shown)).status_code == 200
        answers: list[Response] = []
        endpoint.ledger_answers.clear()
        cancel = endpoint.hand(answers, **shown)
        await until(lambda: allowance.waiting == 1)
        cancel()
        endpoint.ledger_answers.set()
        await until(lambda: allowance.waiting == 0)
        assert allowance.is_refused
        assert answers == []
        assert endpoint.meter.traffic["acme"].statuses == {200: 1, 499: 1}

    run(test, limited(rate=0.001))


def test_a_larger_body_than_the_limit_never_reaches_the_model() -> None:
    async def test(endpoint: Endpoint) -> None:
        endpoint.limits = Limits(body_bytes=10)
        assert "10 bytes" in error(await endpoint.infer(), 413)
        assert endpoint.meter.rows == 0

    run(test)


def test_an_answered_request_leaves_nothing_to_the_garbage_collector() -> None:
    """A collection in the middle of the traffic delays every request there is."""

    async def test(endpoint: Endpoint) -> None:
        answers: list[Response] = []
        endpoint.hand(answers)
        await until(lambda: len(answers) == 1)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                endpoint.hand(answers)
            await until(lambda: len(answers) == 21)
            assert gc.collect() < 20
        finally:
            gc.enable()

    run(test)
