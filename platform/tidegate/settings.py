"""What the environment can set. One table: every variable, its default and its meaning.

Settings are read at the time of use, never at import, so that a test or a job can set them first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tidegate.errors import SpecError, StorageError


@dataclass(frozen=True)
class Setting:
    """One environment variable. `default` is used when it is unset or empty."""

    name: str
    default: str
    meaning: str

    def text(self) -> str:
        return os.environ.get(self.name) or self.default

    def flag(self) -> bool:
        value = self.text().lower()
        if value not in ("0", "1", "true", "false"):
            raise SpecError(f"{self.name}={self.text()!r}", expected="0 or 1", remedy=self.meaning)
        return value in ("1", "true")


HOME = Setting("TIDEGATE_HOME", "~/.tidegate", "where runs, prepared data, models and endpoints are kept")
TRACEBACK = Setting("TIDEGATE_TRACEBACK", "0", "1 shows the Python traceback of an error instead of one line")
RAY_LOGS = Setting("TIDEGATE_RAY_LOGS", "0", "1 lets Ray's own log lines through")
LEDGER = Setting("TIDEGATE_LEDGER", "", "a directory: workers record every row they train on there (for audits)")
TRACKING_URI = Setting("MLFLOW_TRACKING_URI", "", "an MLflow server to use instead of the SQLite file under home")
API_KEY = Setting("TIDEGATE_API_KEY", "", "the key that endpoints are asked with")
OTLP_ENDPOINT = Setting(
    "OTEL_EXPORTER_OTLP_ENDPOINT", "", "a collector: replicas send it a span for each request, OTLP over HTTP"
)
OTLP_TRACES_ENDPOINT = Setting("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "", "the whole address, instead of that one's")
SERVE_HOST = Setting("TIDEGATE_SERVE_HOST", "127.0.0.1", "the address where endpoints answer; beyond loopback: keys")
SERVE_PORT = Setting("TIDEGATE_SERVE_PORT", "8000", "the port where endpoints answer")
GRPC_PORT = Setting("TIDEGATE_GRPC_PORT", "9000", "the port where endpoints answer over gRPC")
TLS_CERT = Setting("TIDEGATE_TLS_CERT", "", "a PEM file, certificate chain and private key: endpoints answer TLS alone")
TRACING = (OTLP_ENDPOINT, OTLP_TRACES_ENDPOINT)
"""Replicas send spans where one of them is set."""


def serve_scheme() -> str:
    """`https` where endpoints answer TLS."""
    return "https" if TLS_CERT.text() else "http"


def home() -> Path:
    """The directory that holds everything Tidegate keeps; absolute, created if missing, private to the user."""
    path = Path(HOME.text()).expanduser().resolve()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(
            f"the home directory {path} cannot be made: {error.strerror}", remedy=f"set {HOME.name} to another folder"
        ) from error
    return path
