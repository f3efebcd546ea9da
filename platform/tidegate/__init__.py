"""Tidegate: elastic training and serving on one Ray cluster."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidegate.api import (
        Deployed,
        Run,
        capacity_report,
        connect,
        deploy,
        endpoints,
        get_run,
        load_spec,
        predict,
        remove,
        runs,
        set_alias,
        train,
        versions,
    )
    from tidegate.client import Client
    from tidegate.errors import TidegateError
    from tidegate.registry import Version
    from tidegate.spec.endpoint import Endpoint
    from tidegate.spec.run import Spec

# Loaded on first use (PEP 562), so that importing tidegate brings in neither ray nor torch.
_HOMES = {
    **dict.fromkeys(
        (
            "Deployed",
            "Run",
            "capacity_report",
            "connect",
            "deploy",
            "endpoints",
            "get_run",
            "load_spec",
            "predict",
            "remove",
            "runs",
            "set_alias",
            "train",
            "versions",
        ),
        "tidegate.api",
    ),
    "Client": "tidegate.client",
    "TidegateError": "tidegate.errors",
    "Version": "tidegate.registry",
    "Endpoint": "tidegate.spec.endpoint",
    "Spec": "tidegate.spec.run",
}

__all__ = [
    "Client",
    "Deployed",
    "Endpoint",
    "Run",
    "Spec",
    "TidegateError",
    "Version",
    "capacity_report",
    "connect",
    "deploy",
    "endpoints",
    "get_run",
    "load_spec",
    "predict",
    "remove",
    "runs",
    "set_alias",
    "train",
    "versions",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tidegate' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
