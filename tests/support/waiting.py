"""Waits for a condition, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_WAIT_SECONDS = 240.0
"""Seconds after which a wait fails; none takes as long, even on a machine that is busy with something else."""


class WaitedInVainError(AssertionError):
    """What was waited for has not come in time."""


def wait_until(
    ready: Callable[[], object], what: str, max_seconds: float = MAX_WAIT_SECONDS, pause: float = 0.02
) -> object:
    """Call `ready` every `pause` seconds until it returns something true; return that.

    Raises
    ------
    WaitedInVainError
        That was not so for `max_seconds`; names `what` was waited for.
    """
    deadline = time.monotonic() + max_seconds
    while time.monotonic() < deadline:
        found = ready()
        if found:
            return found
        time.sleep(pause)
    raise WaitedInVainError(f"waited in vain for {what}")
