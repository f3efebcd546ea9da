"""Contracts with the installed Ray: every private name that Tidegate takes exists and is what it was taken for."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

from tidegate import ray_internals


def taken() -> list[tuple[str, str]]:
    """Every `from ray... import name` in the module, at any depth."""
    tree = ast.parse(inspect.getsource(ray_internals))
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ray")
    ]
    return [(str(node.module), alias.name) for node in imports for alias in node.names]


@pytest.mark.parametrize(("module", "name"), taken())
def test_the_name_exists(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_the_loopback_switch_is_read_where_addresses_are_resolved() -> None:
    from ray._private import ray_constants, services

    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool)
    assert "ENABLE_RAY_CLUSTER" in inspect.getsource(services)


def test_the_client_of_serve_takes_whole_configurations() -> None:
    from ray.serve._private.client import ServeControllerClient

    assert list(inspect.signature(ServeControllerClient.deploy_apps).parameters)[:2] == ["self", "config"]
    assert hasattr(ServeControllerClient, "get_serve_details")


def test_serve_asks_replicas_for_the_stats_that_the_deployer_reads() -> None:
    from ray.serve._private.replica import Replica

    assert hasattr(Replica, "record_routing_stats")
