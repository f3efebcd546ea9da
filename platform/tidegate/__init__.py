"""Tidegate: elastic training and serving on one Ray cluster."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidegate.api import (
        Deployed,
        capacity_report,
        connect,
        deploy,
        endpoints,
        get_run,
        load_spec,
        predict,
        predict_batch,
        register,
        remove,
        runs,
        set_alias,
        train,
        versions,
    )
    from tidegate.async_client import AsyncClient
    from tidegate.client import Client
    from tidegate.errors import TidegateError
    from tidegate.handle import Run
    from tidegate.registry import Version
    from tidegate.remote.keys import create_key, list_keys, revoke_key
    from tidegate.spec.endpoint import Endpoint, Replicas
    from tidegate.spec.run import Spec

# Loaded on first use (PEP 562), so that importing tidegate brings in neither ray nor torch.
_HOMES = {
    **dict.fromkeys(
        (
            "Deployed",
            "capacity_report",
            "connect",
            "deploy",
            "endpoints",
            "get_run",
            "load_spec",
            "predict",
            "predict_batch",
            "register",
            "remove",
            "runs",
            "set_alias",
            "train",
            "versions",
        ),
        "tidegate.api",
    ),
    "AsyncClient": "tidegate.async_client",
    "Client": "tidegate.client",
    "Run": "tidegate.handle",
    "TidegateError": "tidegate.errors",
    "Version": "tidegate.registry",
    **dict.fromkeys(("create_key", "list_keys", "revoke_key"), "tidegate.remote.keys"),
    **dict.fromkeys(("Endpoint", "Replicas"), "tidegate.spec.endpoint"),
    "Spec": "tidegate.spec.run",
}

__all__ = [
    "AsyncClient",
    "Client",
    "Deployed",
    "Endpoint",
    "Replicas",
    "Run",
    "Spec",
    "TidegateError",
    "Version",
    "capacity_report",
    "connect",
    "create_key",
    "deploy",
    "endpoints",
    "get_run",
    "list_keys",
    "load_spec",
    "predict",
    "predict_batch",
    "register",
    "remove",
    "revoke_key",
    "runs",
    "set_alias",
    "train",
    "versions",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tidegate' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
