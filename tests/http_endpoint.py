"""An HTTP server of one endpoint for tests of clients: it sums and echoes, and misbehaves when told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from tidegate import protocol
from tidegate.errors import TidegateError
from tidegate.protocol import HEADER_LENGTH, Signature, TensorSpec

FIRST = Signature(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("word", "BYTES", (-1,))),
    (TensorSpec("total", "FP32", (-1,)), TensorSpec("echo", "BYTES", (-1,))),
)
STATISTICS = b'{"model_stats": [{"name": "m", "version": "1", "inference_count": 3}]}'


class Server(ThreadingHTTPServer):
    # The default of 5 is too few for a hundred connections that are opened at once.
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that ends the connection is part of the tests."""


class Endpoint:
    """A server of one endpoint, `m`, that sums `x` and echoes `word`; `faults` come before its answers."""

    def __init__(self) -> None:
        self.signature = FIRST
        self.max_rows = 256
        self.takes_binary = True
        self.body_bytes = 8 * 2**20
        self.key = ""
        self.calls: list[str] = []
        self.rows: list[int] = []
        self.headers: list[Message] = []
        self.forms: list[str] = []
        self.faults: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.server = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, path: str, body: bytes, headers: Message) -> tuple[int, protocol.Body]:
        known = {
            "/v2/health/live": protocol.live_body,
            "/v2/health/ready": lambda: protocol.ready_body(True),
            "/v2/models": lambda: protocol.models_body({"m": True, "n": False}),
            "/v2/models/m": lambda: protocol.metadata_body("m", ["1", "2"], self.signature),
            "/v2/models/m/ready": lambda: protocol.ready_body(True, "m"),
            "/v2/models/m/stats": lambda: STATISTICS,
        }
        if self.key and headers.get("Authorization") != f"Bearer {self.key}":
            return 401 if "Authorization" not in headers else 403, protocol.Body(protocol.error_body("no key of ours"))
        try:
            if path == "/v2/models/m/infer":
                return self.infer(body, headers)
            if path not in known:
                return 404, protocol.Body(protocol.error_body(f"no {path}"))
            return 200, protocol.Body(known[path]())
        except TidegateError as error:
            return error.http_status, protocol.Body(protocol.error_body(str(error)))

    def infer(self, body: bytes, headers: Message) -> tuple[int, protocol.Body]:
        length = headers.get(HEADER_LENGTH)
        self.forms.append("JSON" if length is None else "binary")
        if len(body) > self.body_bytes:
            return 413, protocol.Body(protocol.error_body("too large"))
        known = int(length) if length is not None and self.takes_binary else None
        request = protocol.parse_request(body, self.signature, max_rows=self.max_rows, header_length=known)
        x, word = request.inputs["x"], request.inputs["word"]
        self.rows.append(len(x))
        outputs = {"total": x.reshape(len(x), -1).sum(axis=1).astype(np.float32), "echo": word}
        return 200, protocol.encode_response("m", "1", self.signature, outputs, request)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body are two writes: the second would wait for the client to have seen the first.
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                endpoint.calls.append(f"{self.command} {self.path}")
                endpoint.headers.append(self.headers)
                try:
                    fault = endpoint.faults.pop(0)
                except IndexError:
                    code, answer = endpoint.answer(self.path, body, self.headers)
                    length = {} if answer.header_length is None else {HEADER_LENGTH: str(answer.header_length)}
                    send(self, code, answer.content, **length)
                else:
                    fault(self)

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def serving() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        thread.join()
        endpoint.server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def status(
    code: int, body: bytes = b'{"error": "as told"}', **headers: str
) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: send(handler, code, body, **headers)


def drop(handler: BaseHTTPRequestHandler) -> None:
    """Ends the connection without an answer."""
    handler.close_connection = True


def rows(count: int) -> dict[str, Any]:
    return {"x": np.arange(2 * count).reshape(count, 2), "word": [f"w{i}" for i in range(count)]}
