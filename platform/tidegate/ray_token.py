"""Ray's authentication token on this machine: found where Ray looks for it. Never shown."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT = "~/.ray/auth_token"


@dataclass(frozen=True)
class Token:
    """`source` says where it is: a variable's name, or a path."""

    value: str = field(repr=False)
    source: str
    path: Path | None = None

    @property
    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.value}"}

    def others_may_read(self) -> bool:
        """Whether its file is open to other users of this machine."""
        return self.path is not None and bool(stat.S_IMODE(self.path.stat().st_mode) & 0o077)


def find() -> Token | None:
    """The token that Ray would use: RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.

    None when there is none, or it cannot be read.
    """
    if value := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return Token(value, "RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or DEFAULT).expanduser()
    try:
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return Token(value, str(path), path) if value else None
