"""An HTTP client for endpoints: numpy arrays and lists in, numpy arrays out, without ray or torch."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tidegate.client_calls import Ask, Calls, Metadata, Pause, Steps, model_path
from tidegate.client_server import DEFAULT_URL, base, server
from tidegate.tensors import Array

__all__ = ["DEFAULT_URL", "Client", "Metadata", "curl_line"]

T = TypeVar("T")


class Client:
    """Talks to the endpoints at `url`; `timeout_s` bounds each wait for the network. A context manager; thread-safe.

    Calls raise ClusterError when nothing listens, NotFoundError, RequestError, AccessError, LimitError and
    UnavailableError as the server says. `api_key` is TIDEGATE_API_KEY unless it is given. A 429, a 503 and a connection
    that breaks are tried again, as the server says or three times within about two seconds, for at most `retry_s`: a
    prediction changes nothing on the server. Tensors travel as bytes, and as JSON to a server that refuses those.
    `ca_file` names the authority of a server's certificate; `verify=False` takes any certificate.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry_s: float = 10.0,
        ca_file: str | Path | None = None,
        verify: bool = True,
    ) -> None:
        asked = server(url, api_key, ca_file, verify)
        self.url = asked.shown
        self._calls = Calls(asked, retry_s)
        self._http = httpx.Client(**asked.options(timeout_s))

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def live(self) -> bool:
        """Whether the server answers; False, too, when nothing listens."""
        return self._run(self._calls.probe(None, "live"))

    def ready(self, name: str | None = None) -> bool:
        """Whether the server, or that endpoint, takes requests. Raises NotFoundError for an unknown endpoint."""
        return self._run(self._calls.probe(name, "ready"))

    def models(self) -> list[str]:
        """The names of all endpoints, ready or not."""
        return self._run(self._calls.models())

    def metadata(self, name: str) -> Metadata:
        """The endpoint's versions and signature, asked for anew and kept for `predict`."""
        return self._run(self._calls.metadata(name))

    def statistics(self, name: str) -> dict[str, Any]:
        """What the replica that answers has counted since its start: requests, rows, passes and where time went."""
        return self._run(self._calls.statistics(name))

    def predict(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The endpoint's outputs for `inputs`: column -> array or list, one entry a row, any number of rows.

        Datatypes come from the endpoint's signature, which is read once and again when a request is refused: the
        endpoint may have moved to another version. More than 256 rows, or 4 MiB, travel in several requests, and so do
        rows of different lengths, where the model takes such.
        """
        return self._run(self._calls.predict(name, inputs))

    def _run(self, steps: Steps[T]) -> T:
        answer: httpx.Response | Exception | None = None
        while True:
            try:
                step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = self._done(step)

    def _done(self, step: Ask | Pause) -> httpx.Response | Exception | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            return self._http.request(step.method, step.path, content=step.content, headers=step.headers)
        except httpx.HTTPError as error:
            return error


def curl_line(url: str, name: str, body: bytes | str) -> str:
    """A shell command that sends `body` to the endpoint, to copy and paste."""
    text = body.decode() if isinstance(body, bytes) else body
    target = f"{base(url)}{model_path(name)}/infer"
    return shlex.join(["curl", "-sS", "-H", "Content-Type: application/json", "--data-raw", text, target])
