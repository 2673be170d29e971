"""Ray for a sweep: joined or started, and ended. Its processes come up while the driver imports what it will need."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from raypipe.backend.output import CapturedOutput
from raypipe.core.errors import UserError, first_line
from raypipe.trial.callback import SweepCallback

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # its snapshots are not used
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files of every report, in Tune's own loop, that nobody reads
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # ten minutes is how long a lost one may else go unnoticed
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # see `on_first_interrupt`
}


class Cluster:
    """Ray while its block lasts, once `start` is called.

    Parameters
    ----------
    address
        Of a running cluster; None starts Ray on this machine.
    callback
        Its `on_ray_start` is called.
    preload
        Modules to import while Ray's processes come up.

    Attributes
    ----------
    noise
        Takes what Ray prints.
    """

    def __init__(self, address: str | None, callback: SweepCallback, preload: Sequence[str] = ()) -> None:
        self._preload = ("raypipe.backend.worker_groups", *preload)
        self._address, self._callback = address, callback
        self.noise = CapturedOutput()
        self._stack = contextlib.ExitStack()
        self._started = self._ours = False

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
        self._callback.on_ray_start(self._address)
        with contextlib.redirect_stdout(self.noise), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray

            others = threading.Thread(target=_import, args=(self._preload,), daemon=True)
            others.start()
            if not ray.is_initialized():
                self._ours = True
                self._stack.enter_context(_ray_logs_to(self.noise))
                _init(self._address)
                self._stack.callback(ray.shutdown)
                _listen(self.noise)
            others.join()
        if threading.current_thread() is threading.main_thread():
            # Ray's own handler ends the process at once. A notice to stop is a Ctrl-C.
            before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            self._stack.callback(signal.signal, signal.SIGTERM, before)

    def restart(self) -> None:
        """Leave Ray and join or start it anew, so that all that the sweep held is given back.

        A Ray that was there before the block stays.
        """
        if not self._ours:
            return
        import ray

        with contextlib.redirect_stdout(self.noise):
            ray.shutdown()
            _init(self._address)
            _listen(self.noise)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.redirect_stdout(self.noise):
            self._stack.close()


@contextlib.contextmanager
def on_first_interrupt(then: Callable[[], None]) -> Iterator[None]:
    """Within it, the first Ctrl-C only calls `then`; the next does what a Ctrl-C did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        then()

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _import(modules: Sequence[str]) -> None:
    """Import what takes seconds; should it fail, it fails again, and is heard, where it is used."""
    with contextlib.suppress(Exception):
        for name in modules:
            importlib.import_module(name)


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a Ray that is started within listen on this machine's loopback only, as Ray itself does on a Mac.

    Its GCS, raylet and workers would listen on every interface. A node's address follows from this setting; one of
    127.0.0.1 that `ray.init` is given is replaced by the address that others reach.
    """
    from ray._private import ray_constants

    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    kept = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False  # for Ray's processes, and for this one
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(name)
        if kept is not None:
            os.environ[name] = kept


@contextlib.contextmanager
def _ray_logs_to(noise: CapturedOutput) -> Iterator[None]:
    """Have Ray's own logger write to `noise` and not to the terminal."""
    logger = logging.getLogger("ray")
    before, logger.handlers = logger.handlers, [logging.StreamHandler(noise)]
    try:
        yield
    finally:
        logger.handlers = before


def _listen(noise: CapturedOutput) -> None:
    """Have what Ray's processes print handed to `noise`, and not printed here."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as heard

    for name in ("ray_print_logs", "raypipe"):  # the first is Ray's, of `log_to_driver`
        heard.remove_handler(name)
    heard.add_handler("raypipe", noise.hear)


def _init(address: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.WARNING}
    if not address:
        with _on_loopback():
            # Without an address, Ray joins whatever cluster was last started on this machine, by anyone.
            ray.init(address="local", include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except ray.exceptions.AuthenticationError as error:
        raise UserError(f"--address {address}: {first_line(error)}") from None
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = os.environ.get("RAY_AUTH_MODE") == "token"
        hint = "" if told else "; one with token authentication asks for RAY_AUTH_MODE=token and ~/.ray/auth_token"
        raise UserError(f"--address {address}: no Ray cluster there ({first_line(error)}){hint}") from None
