"""What a server's answers mean: the error of each status, and what stands in a body."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson

from tidegate.errors import (
    AccessError,
    ClusterError,
    LimitError,
    NotFoundError,
    RequestError,
    TidegateError,
    UnavailableError,
)

BROKEN = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
"""A connection that worked and then did not."""


def checked(response: httpx.Response) -> httpx.Response:
    """Raises the error of a status that is no success."""
    if response.is_success:
        return response
    raise _error(response)


def _error(response: httpx.Response) -> TidegateError:
    status, said = response.status_code, message(response)
    if status in (401, 403):
        return AccessError(said, remedy="pass api_key, or set TIDEGATE_API_KEY" if status == 401 else "")
    if status == 404:
        return NotFoundError(said)
    if status == 429:
        return LimitError(said, retry_after_s=retry_after_s(response))
    if status in (408, 502, 503, 504):
        return UnavailableError(said, retry_after_s=retry_after_s(response))
    return RequestError(said) if 400 <= status < 500 else ClusterError(said)


def message(response: httpx.Response) -> str:
    """What the server says went wrong."""
    try:
        return str(orjson.loads(response.content)["error"])
    except (ValueError, TypeError, KeyError):
        place = response.url.copy_with(userinfo=b"")
        return f"{place} answered {response.status_code}: {response.text[:200].strip() or 'nothing'}"


def retry_after_s(response: httpx.Response) -> float | None:
    """The header Retry-After, a number of seconds or a date; None where there is none."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def header_length(response: httpx.Response, header: str) -> int | None:
    """Where the JSON of a body in the binary form ends; None for a body of JSON alone."""
    value = response.headers.get(header)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 12):
        raise strange(str(response.url.copy_with(userinfo=b"")), f"{header} {value[:20]!r}")
    return int(value)


def document(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a body."""
    try:
        body = orjson.loads(response.content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise strange(str(response.url.copy_with(userinfo=b"")), "no JSON object")
    return body


def strange(url: str, what: str) -> ClusterError:
    return ClusterError(f"{url} answered {what}", remedy="Check that the URL is that of a Tidegate cluster")


@contextmanager
def typed_errors(url: str) -> Iterator[None]:
    """Turns what httpx raises into errors of ours."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ClusterError(
                f"{url} shows a certificate that is not trusted here: {error}",
                remedy="Pass the authority that signed it as ca_file",
            ) from error
        raise ClusterError(
            f"Nothing answers at {url}: {error}",
            remedy="Start the cluster with `tidegate up`, or pass the URL of one that runs",
        ) from error
    except httpx.TimeoutException as error:
        raise UnavailableError(f"{url} did not answer in time", remedy="Allow more with timeout_s") from error
    except BROKEN as error:
        raise UnavailableError(f"The connection to {url} broke: {error}", remedy="Try again") from error
    except httpx.HTTPError as error:
        raise strange(url, f"an unusable answer: {error}") from error
