"""State of a process that a sweep must leave as it was."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from typing import Any


def process_state() -> dict[str, Any]:
    """Return environment, standard streams, warning filters, signal handlers and the handlers of Ray's logger."""
    import ray  # noqa: F401 - its import configures its logger

    logger = logging.getLogger("ray")
    signals = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGUSR1")}
    return signals | {
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "logger": (list(logger.handlers), logger.level),
    }
