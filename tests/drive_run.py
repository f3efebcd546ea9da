"""A driver in a process of its own, for tests that end it: python tests/drive_run.py ADDRESS SPEC RUN MODULE:LOOP

An empty last word means Tidegate's own loop.
"""

from __future__ import annotations

import importlib
import sys

import tidegate as tg


def main() -> None:
    address, spec, run, path = sys.argv[1:]
    module, _, name = path.partition(":")
    tg.connect(address)
    tg.train(spec, name=run, loop=getattr(importlib.import_module(module), name) if path else None)


if __name__ == "__main__":
    main()
