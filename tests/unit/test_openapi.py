"""The page docs/openapi.yaml: it is whole, each of its paths is routed, and answers are as it says, without a key more.

That it holds for whatever is asked is tests/elastic/test_openapi.py's.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tidegate import keys
from tidegate.protocol import HEADER_LENGTH, encode_request
from tidegate.serving import root, targets
from tidegate.serving.exchange import Handler, Request, Response, answered
from tidegate.serving.gate import Access
from tidegate.serving.http_api import HttpApi
from tidegate.spec.document import load_yaml
from tiny_endpoint import GOOD, SIGNATURE, Tiny

PAGE = Path(__file__).parents[2] / "docs" / "openapi.yaml"
TEXT = PAGE.read_text()
DOCUMENT = load_yaml(PAGE)
OPERATIONS = [(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations]
WAIT_S = 20.0
ACCESS = {"is_public": False, "is_required": False, "tenants": {}}
INFER = "/v2/models/{name}/infer"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    monkeypatch.setattr(root, "take_ports", lambda *_, **__: None)


def test_it_is_whole() -> None:
    references = set(re.findall(r'\$ref: "#/components/(\w+)/(\w+)"', TEXT))
    components = {(kind, name) for kind, parts in DOCUMENT["components"].items() for name in parts}
    assert references == {(kind, name) for kind, name in components if kind != "securitySchemes"}
    assert TEXT.count("$ref: ") == len(re.findall(r'\$ref: "#/components/(\w+)/(\w+)"', TEXT))
    ids = [DOCUMENT["paths"][path][method]["operationId"] for path, method in OPERATIONS]
    assert len(set(ids)) == len(ids) == 17
    for path, method in OPERATIONS:
        parameters = [resolved(each)["name"] for each in DOCUMENT["paths"][path][method]["parameters"]]
        assert re.findall(r"{(\w+)}", path) == [name for name in parameters if name in ("name", "version")]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_each_path_is_routed_and_answers_as_it_says(path: str, method: str) -> None:
    async def test() -> None:
        handler = await handler_of(path)
        response = await ask(handler, path, method, good(path))
        # Who may deploy shows a key.
        assert response.status == (HTTPStatus.UNAUTHORIZED if path.endswith("load") else HTTPStatus.OK)
        check(response, path, method)
        if method == "get":
            assert (await ask(handler, path, "head")).status == HTTPStatus.OK
        refused = await ask(handler, path, "delete")
        assert refused.status == HTTPStatus.METHOD_NOT_ALLOWED
        allowed = dict(refused.headers)[b"allow"].decode().lower().split(", ")
        assert sorted({*allowed} - {"head"}) == sorted(DOCUMENT["paths"][path])
        assert (await ask(handler, f"{path}x", method)).status == HTTPStatus.NOT_FOUND

    bounded(test())


REFUSED: dict[int, dict[str, Any]] = {
    400: {"body": b"{}"},
    401: {"headers": {b"authorization": b"Bearer unknown"}},
    404: {"path": INFER.replace("/infer", "/versions/2/infer")},
    413: {"headers": {b"content-encoding": b"gzip"}, "body": gzip.compress(bytes(200_000))},
    415: {"headers": {b"content-encoding": b"br"}},
    500: {"body": encode_request({**GOOD, "word": ["boom", "a"]}, SIGNATURE).content},
}


@pytest.mark.parametrize("status", REFUSED)
def test_refusals_are_as_it_says(status: int) -> None:
    async def test() -> None:
        asked = {"path": INFER, "body": good(INFER), **REFUSED[status]}
        response = await ask(await handler_of(INFER), method="post", **asked)
        assert response.status == status
        check(response, INFER, "post")

    bounded(test())


def test_a_key_for_another_endpoint_is_refused_as_it_says() -> None:
    async def test() -> None:
        _, text = keys.create("acme", endpoints=["other"])
        response = await ask(
            await handler_of(INFER), INFER, "post", good(INFER), {b"authorization": f"Bearer {text}".encode()}
        )
        assert response.status == HTTPStatus.FORBIDDEN
        check(response, INFER, "post")

    bounded(test())


def test_a_model_that_loads_is_unavailable_as_it_says() -> None:
    async def test() -> None:
        for path, method in OPERATIONS:
            if path.startswith("/v2/models/"):
                response = await ask(HttpApi(Tiny(Access()).inference).handle, path, method, good(path))
                assert response.status == HTTPStatus.SERVICE_UNAVAILABLE
                check(response, path, method)

    bounded(test())


def test_answers_in_bytes_are_as_it_says() -> None:
    async def test() -> None:
        sent = encode_request(GOOD, SIGNATURE, as_json=False)
        length = {HEADER_LENGTH.encode(): str(sent.header_length).encode()}
        response = await ask(await handler_of(INFER), INFER, "post", sent.content, length)
        assert (response.status, response.content_type) == (200, b"application/octet-stream")
        check(response, INFER, "post")

    bounded(test())


def bounded(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, WAIT_S))


async def handler_of(path: str) -> Handler:
    """Who HAProxy sends such requests to: the endpoint that is meant, or the root."""
    if path.startswith("/v2/models/"):
        tiny = Tiny(Access(**ACCESS))
        tiny.load()
        return HttpApi(tiny.inference).handle
    told = {"ready": True, "serves": True, "sleeps": False, "version": 3, "message": "", "access": ACCESS}
    targets.publish(targets.ROOT, {"keys_required": False, "endpoints": {"tiny": told}})
    handler = root.Root(str(targets.settings.home()), True).handle
    while b"tiny" not in (await ask(handler, "/v2/models", "get")).body:
        await asyncio.sleep(0.01)
    return handler


def good(path: str) -> bytes:
    return encode_request(GOOD, SIGNATURE, id="seven").content if path.endswith("/infer") else b""


async def ask(
    handler: Handler, path: str, method: str, body: bytes = b"", headers: dict[bytes, bytes] | None = None
) -> Response:
    answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    path = path.replace("{name}", "tiny").replace("{version}", "3")
    answered(handler, Request(method.upper(), path, headers or {}, body), answer.set_result)
    return await answer


def check(response: Response, path: str, method: str) -> None:
    """The page has this answer: its status, headers, content type and, of JSON, all keys."""
    said = resolved(DOCUMENT["paths"][path][method]["responses"][str(int(response.status))])
    headers = {name.decode(): value.decode() for name, value in response.headers}
    described = {name.lower(): resolved(header) for name, header in said["headers"].items()}
    assert headers.keys() <= described.keys()
    assert {name for name, header in described.items() if header.get("required")} <= headers.keys()
    content = said["content"][response.content_type.decode()]
    if response.content_type == b"application/json":
        Draft202012Validator({**content["schema"], "components": closed()}).validate(json.loads(response.body))


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    _, _, kind, name = part["$ref"].split("/")
    found: dict[str, Any] = DOCUMENT["components"][kind][name]
    return found


@cache
def closed() -> Any:
    """The page's components, with each object's keys being all that it has."""
    components = deepcopy(DOCUMENT["components"])
    for part in objects(components["schemas"]):
        if "properties" in part:
            part.setdefault("additionalProperties", False)
    return components


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(part)
