"""Garbage collection of a worker process, put off until its loop begins.

Imports make hundreds of thousands of objects that all stay. Looking through them again and again would be a fifth of
the time between the start of the process and its first step.
"""

from __future__ import annotations

import gc


def begin() -> None:
    """Called by Ray in every worker process of a run, before anything is imported."""
    gc.disable()


def end() -> None:
    """Called when the loop begins. What was made so far is not looked at again."""
    gc.freeze()
    gc.enable()
