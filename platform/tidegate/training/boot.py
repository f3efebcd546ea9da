"""How a worker process begins: it gives way to replicas, and puts garbage collection off until its loop begins.

Imports make hundreds of thousands of objects that all stay. Looking through them again and again would be a fifth of
the time between the start of the process and its first step.
"""

from __future__ import annotations

import gc
import os

GIVES_WAY = 19
"""Added to the niceness of Ray's workers; 19 is the most there is. Replicas on the same cores go before."""


def begin() -> None:
    """Called by Ray in every worker process of a run, before anything is imported."""
    gc.disable()
    os.nice(GIVES_WAY)


def end() -> None:
    """Called when the loop begins. What was made so far is not looked at again."""
    gc.freeze()
    gc.enable()
