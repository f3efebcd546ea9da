"""cluster.yaml is a configuration that Ray's cluster launcher takes, and its nodes get the flags of a local cluster."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tidegate.cluster_environment import NODE_FLAGS, NODE_PROGRAMS

PATH = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture(name="config")
def _config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(PATH.read_text())
    return config


def exported(command: str) -> dict[str, str]:
    """The variables a shell command exports before it starts Ray."""
    before = command[: command.index("ray start")]
    lines = [shlex.split(line) for line in before.splitlines()]
    return dict(words[1].split("=", 1) for words in lines if words and words[0] == "export")


def test_ray_takes_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


def test_ray_refuses_a_mistake(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu"]["maximum"] = 3
    with pytest.raises(Exception, match="maximum"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_nodes_get_the_flags_of_a_local_cluster(config: dict[str, Any], commands: str) -> None:
    (start,) = [command for command in config[commands] if "ray start" in command]
    # Of several nodes, replicas must reach each other.
    assert exported(start) == NODE_FLAGS | NODE_PROGRAMS | {"TIDEGATE_SERVE_HOST": "0.0.0.0"}


def test_groups(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types["cpu"]["resources"].get("GPU", 0) == 0
    assert types["gpu"]["resources"]["GPU"] > 0
    assert all(types[name]["labels"]["tidegate.group"] == name for name in types)
    assert all(types[name]["min_workers"] <= types[name]["max_workers"] <= config["max_workers"] for name in types)


def test_the_project_and_the_token_reach_every_node(config: dict[str, Any]) -> None:
    mounted = {source: target for target, source in config["file_mounts"].items()}
    assert any(command.endswith(mounted["."]) and "pip install" in command for command in config["setup_commands"])
    assert mounted["~/.ray/auth_token"] == "/home/ray/.ray/auth_token"
