"""The access log: lines of JSON in a file, for about the part of the requests that was asked for."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from tidegate.serving.access_log import AccessLog


def test_lines_are_json_with_the_time_and_the_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.jsonl"
    log = AccessLog(path, "digits", 1.0)
    log.write({"status": 200, "request_id": 'a "quoted"\nname %s'})
    log.write({"status": 503})
    log.close()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["endpoint"] == "digits"
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert (first["request_id"], second["status"]) == ('a "quoted"\nname %s', 503)


def test_the_fraction_is_about_kept(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.jsonl", "digits", 0.25)
    assert 2000 < sum(log.wants() for _ in range(10_000)) < 3000
    log.fraction = 0.0
    assert not any(log.wants() for _ in range(1000))
    log.fraction = 1.0
    assert all(log.wants() for _ in range(1000))
    log.close()
