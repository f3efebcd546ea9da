"""The page on specs names every key there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tidegate.spec.endpoint import Endpoint
from tidegate.spec.run import Spec

PAGE = (Path(__file__).parents[2] / "docs" / "spec.md").read_text()
WORDS = set(re.findall(r"`\.?([a-z_.]+)`", PAGE))


def keys(schema: dict[str, Any]) -> set[str]:
    parts = [schema, *schema.get("$defs", {}).values()]
    return {key for part in parts for key in part.get("properties", {})}


@pytest.mark.parametrize("kind", [Spec, Endpoint])
def test_every_key_is_explained(kind: type[Spec] | type[Endpoint]) -> None:
    named = {part for word in WORDS for part in word.split(".")}
    assert keys(kind.model_json_schema()) - named == set()
