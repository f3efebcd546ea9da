"""The dashboard and the page on monitoring name the metrics that replicas have, all of them and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tidegate.serving.telemetry import NAMES

DOCS = Path(__file__).parents[2] / "docs"


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
    assert named((DOCS / "monitoring.md").read_text()) == set(NAMES)
