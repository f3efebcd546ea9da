"""The server that a client talks to: its address, the key, and whom to trust."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tidegate import settings
from tidegate.errors import AccessError, ClusterError

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Server:
    """Made by `server`. What could be a secret is not in its repr."""

    url: str = field(repr=False)
    api_key: str = field(default="", repr=False)
    ca_file: str | Path | None = None
    verify: bool = True

    @cached_property
    def shown(self) -> str:
        """The URL for a message, without a password that it may carry."""
        return re.sub(r"//[^/@]*@", "//", self.url)

    def options(self, timeout_s: float) -> dict[str, Any]:
        """What httpx's clients are made with."""
        local = is_loopback(self.url)
        headers = {"Accept-Encoding": "identity"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return {
            "base_url": self.url,
            # To wait for one of its own connections is no wait for the network.
            "timeout": httpx.Timeout(timeout_s, pool=None),
            # A proxy from the environment must stay out of the way to this machine.
            "trust_env": not local,
            "verify": self._trusted(local),
            "headers": headers,
        }

    def _trusted(self, local: bool) -> ssl.SSLContext | bool:
        # Without TLS there is nothing to verify, and reading the certificates takes longer than a prediction.
        if not self.verify or (local and not self.url.startswith("https")):
            return False
        if self.ca_file is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ClusterError(
                f"{self.ca_file} holds no certificates that can be read: {error}", expected="a file in PEM form"
            ) from error


def server(url: str, api_key: str | None, ca_file: str | Path | None, verify: bool) -> Server:
    """The server at `url`. Without a key the environment's is taken; an empty one is none."""
    key = (settings.API_KEY.text() if api_key is None else api_key).strip()
    # httpx would show it in what it raises.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise AccessError("the key holds characters that no key has", remedy="correct api_key or TIDEGATE_API_KEY")
    return Server(base(url), key, ca_file, verify)


def base(url: str) -> str:
    """Raises ClusterError for what is no URL of a server."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClusterError(f"{url!r} is no URL of a server", expected=f"such as {DEFAULT_URL}")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
