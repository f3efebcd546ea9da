"""Where Serve listens when the deployer starts it."""

from __future__ import annotations

from tidegate.settings import Setting

HOST = "127.0.0.1"
SERVE_PORT = Setting("TIDEGATE_SERVE_PORT", "8000", "the port of 127.0.0.1 where endpoints answer")
