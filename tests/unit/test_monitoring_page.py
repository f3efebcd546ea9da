"""The dashboard and the page on monitoring name what replicas have, all of it and no more: metrics and attributes."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

from opentelemetry.sdk import environment_variables

from tidegate import settings
from tidegate.errors import RequestError
from tidegate.serving import tracing
from tidegate.serving.batching import Ticket
from tidegate.serving.telemetry import NAMES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "monitoring.md").read_text()
TRACES = PAGE.partition("## Traces")[2].partition("\n## ")[0]


def named(text: str) -> set[str]:
    found = re.findall(r"ray_(tidegate_[a-z_]+)", text)
    return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in found}


def test_the_dashboard_shows_every_metric() -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert named(" ".join(queries)) == set(NAMES)
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in dashboard["panels"]})


def test_the_page_explains_every_metric() -> None:
    assert named(PAGE) == set(NAMES)


def test_the_page_explains_every_attribute_of_a_span() -> None:
    ticket = Ticket({}, 1, (), print, 0.0)
    ended: Any = {"headers": {}, "tenant": "acme", "version": 1, "ticket": ticket, "status": 400}
    ended |= {"error": RequestError("no"), "arrived": 0.0, "computed": 0.0, "left": 0.0}
    protocols: tuple[tracing.Protocol, ...] = ("http", "grpc")
    made = [tracing._attributes("net", tracing.Ended(protocol=protocol, **ended)) for protocol in protocols]
    rows = [line.split("|")[1] for line in TRACES.splitlines() if line.startswith("| `")]
    assert set(re.findall("`([^`]+)`", " ".join(rows))) == set(made[0]) | set(made[1])


def test_the_variables_of_traces_are_those_of_the_sdk_and_the_extra_is_there() -> None:
    (block,) = re.findall(r"^```bash\n(.*?)^```$", TRACES, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    exported = {word.partition("=")[0] for words in lines if words[0] == "export" for word in words[1:]}
    assert settings.OTLP_ENDPOINT.name in exported
    known = set(vars(environment_variables))
    assert exported | set(re.findall(r"`(OTEL_\w+)`", TRACES)) <= known
    assert any(name.startswith("OTEL_BSP_") for name in known)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert ["pip", "install", "tidegate[otel]"] in lines
    assert "otel" in extras
