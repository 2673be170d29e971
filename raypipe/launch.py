"""Ray for a sweep: joined or started, and ended. Its processes come up while the driver imports what it will need."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

from raypipe.errors import UserError

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # its snapshots are not used
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


class Cluster:
    """Ray while its block lasts, once `start` is called.

    Parameters
    ----------
    address
        Of a running cluster; None starts Ray on this machine.
    watch
        Told of the start.
    """

    def __init__(self, address: str | None, watch: Callable[[str, dict[str, Any]], None]) -> None:
        self._address, self._watch = address, watch
        self._stack = contextlib.ExitStack()
        self._started = False

    def __enter__(self) -> Cluster:
        return self

    def start(self) -> None:
        """Join Ray or start it; again, it does nothing.

        Raises
        ------
        UserError
            There is no cluster at the address.
        """
        if self._started:
            return
        self._started = True
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        if not self._address:
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # this machine is not reclaimed
        self._watch("launch", {"address": self._address})
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray

            others = threading.Thread(target=_import_the_rest, daemon=True)
            others.start()
            if not ray.is_initialized():
                _init(self._address)
                self._stack.callback(ray.shutdown)
            others.join()
        if threading.current_thread() is threading.main_thread():
            # Ray's own handler ends the process at once. A notice to stop is Tune's first Ctrl-C.
            before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            self._stack.callback(signal.signal, signal.SIGTERM, before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._stack.close()


def _import_the_rest() -> None:
    """Import what takes seconds; should it fail, it fails again, and is heard, where it is used."""
    with contextlib.suppress(Exception):
        import raypipe.groups
        import raypipe.study  # noqa: F401


def _init(address: str | None) -> None:
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        ray.init(include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--address {address}: no Ray cluster there ({str(error).splitlines()[0]})") from None
