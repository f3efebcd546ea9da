"""What Serve says about endpoints, read from its details, and what follows for a rollout."""

from __future__ import annotations

import http.client
import re
import ssl
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any

from tidegate import settings
from tidegate.serving.applications import DEPLOYMENT
from tidegate.serving.desired import Record


@dataclass(frozen=True)
class EndpointStatus:
    """One endpoint as it is now.

    `status`: `starting` (no version serves yet), `ready`, `updating` (a new version or spec is being tried while the
    old one serves), `unhealthy` (Serve has no working replica) or `failed` (its only version does not serve). `version`
    is the one that serves; `replicas` counts the running ones; `message` says what is wrong or waited for.
    """

    name: str
    url: str
    model: str
    version: int | None
    status: str
    replicas: int
    message: str


@dataclass(frozen=True)
class View:
    """Serve's side of one endpoint. Replicas that are being reconfigured (`num_updating`) answer all the while."""

    status: str
    message: str
    running: tuple[str, ...]
    num_updating: int
    num_starting: int

    @property
    def num_answering(self) -> int:
        return len(self.running) + self.num_updating


ABSENT = View("NOT_STARTED", "", (), 0, 0)


def view(application: Mapping[str, Any] | None) -> View:
    """`application`: one entry of `applications` in Serve's details, None when Serve has none of that name."""
    if application is None:
        return ABSENT
    deployment = application["deployments"].get(DEPLOYMENT) or {"message": "", "replicas": []}
    states = [(replica["actor_name"], _text(replica["state"])) for replica in deployment["replicas"]]
    count = Counter(state for _, state in states)
    return View(
        _text(application["status"]),
        reason(deployment["message"] or application["message"]),
        tuple(name for name, state in states if state == "RUNNING"),
        count["UPDATING"],
        len(states) - count["RUNNING"] - count["UPDATING"] - count["STOPPING"],
    )


def _text(value: str | Enum) -> str:
    """Serve's enums are strings, but print with the name of their class."""
    return str(value.value if isinstance(value, Enum) else value)


def reason(message: str) -> str:
    """The line of Serve's message that says why: of a traceback, the last one."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # The sentence of an error of ours tells all that its class name does.
    return re.sub(r"^tidegate\.errors\.\w+: ", "", lines[-1]) if lines else ""


def failure_of(view: View, stats: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> str | None:
    """Why the target `config` is not served, None while nothing is wrong with it."""
    if view.status == "DEPLOY_FAILED":
        return view.message
    for answer in stats.values():
        failed = answer["failed"]
        if failed is not None and failed["config"] == config:
            return str(failed["message"])
    return None


def serves(view: View, stats: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any], at_least: int) -> bool:
    """Whether every running replica serves the target `config`, and enough are running."""
    if view.status != "RUNNING" or len(view.running) < at_least:
        return False
    if view.num_updating or view.num_starting:
        return False
    return all(name in stats and stats[name]["serving"] == config for name in view.running)


def answers_ready(host: str, port: int, name: str, version: int) -> bool:
    """Whether the endpoint answers as ready over HTTP: Serve knows a replica a moment before its proxy does."""
    connection = _connection(host, port)
    try:
        connection.request("GET", f"/v2/models/{name}/versions/{version}/ready")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _connection(host: str, port: int) -> http.client.HTTPConnection:
    if settings.serve_scheme() == "http":
        return http.client.HTTPConnection(host, port, timeout=2.0)
    # To this cluster's own proxy, by an address that its certificate need not name; no secret is sent.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=2.0, context=context)


def summary(record: Record, view: View, url: str, note: str) -> EndpointStatus:
    """`note`: what stands in the way of reconciling, empty when nothing does."""
    serving = record.serving
    return EndpointStatus(
        record.endpoint.name,
        url,
        record.endpoint.model,
        serving.version if serving else None,
        _word(record, view),
        view.num_answering,
        note or _message(record, view),
    )


def _word(record: Record, view: View) -> str:
    if record.target is None:
        return "failed"
    if record.serving is None:
        return "starting"
    if record.rolling is None and _sleeps(record, view):
        return "ready"
    if view.num_answering == 0 or view.status in ("UNHEALTHY", "DEPLOY_FAILED"):
        return "unhealthy"
    return "updating" if record.rolling else "ready"


def _message(record: Record, view: View) -> str:
    if record.failure is not None and record.rolling is None:
        return f"{record.failure.pinned.ref} does not serve: {record.failure.message}"
    return "asleep; the next request starts a replica" if _sleeps(record, view) else view.message


def _sleeps(record: Record, view: View) -> bool:
    """Whether no replica is wanted now."""
    is_well = view.status not in ("UNHEALTHY", "DEPLOY_FAILED", ABSENT.status)
    return record.endpoint.replicas.min == 0 and view.num_answering + view.num_starting == 0 and is_well
