"""Connection of a driver to Ray: joins a cluster or starts Ray on this machine, and leaves it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from raypipe.backend.output import CapturedOutput
from raypipe.backend.process_state import (
    deferred_interrupt,
    logger_to,
    restored_process_state,
    restored_signal_handlers,
)
from raypipe.backend.ray_compat import (
    LOCAL_SETTINGS,
    SETTINGS,
    job_config,
    loopback_only,
    process_output_to,
    reread_authentication,
    working_folder_not_copied,
)
from raypipe.core.errors import UserError, first_line
from raypipe.trial.callback import SweepCallback


class Cluster:
    """Context manager that leaves Ray, once `start` has joined or started it, and restores the process's state.

    Parameters
    ----------
    address
        Address of a running cluster; None starts Ray on this machine.
    callback
        Its `on_ray_start` is called.
    preload
        Modules to import while Ray's processes start.

    Attributes
    ----------
    output
        Receives the output of Ray's processes and the log of Ray's driver.
    """

    def __init__(self, address: str | None, callback: SweepCallback, preload: Sequence[str] = ()) -> None:
        self._preload = ("raypipe.backend.worker_groups", *preload)
        self._address, self._callback = address, callback
        self.output = CapturedOutput()
        self._stack = contextlib.ExitStack()
        self._started = self._owns_ray = False

    def __enter__(self) -> Cluster:
        return self

    def start(self) -> None:
        """Join Ray or start it; a second call does nothing. A Ray that the caller has started is used as it is.

        Raises
        ------
        UserError
            There is no cluster at the address, or it needs a token and this process has none, or the reverse.
        """
        if self._started:
            return
        self._started = True
        self._stack.callback(self._forget_authentication)  # after the environment is restored
        self._stack.enter_context(restored_process_state())
        for name, value in (SETTINGS if self._address else SETTINGS | LOCAL_SETTINGS).items():
            os.environ.setdefault(name, value)
        self._callback.on_ray_start(self._address)
        import ray

        imports = threading.Thread(target=_import, args=(self._preload,), daemon=True)
        imports.start()
        if not ray.is_initialized():
            self._owns_ray = True
            self._stack.enter_context(logger_to("ray", self.output))
            self._stack.callback(ray.shutdown)
            _connect(self._address, self.output)
        imports.join()

    def restart(self) -> None:
        """Leave Ray and join or start it again, which releases everything that the sweep held.

        A Ray that the caller has started is kept.
        """
        if not self._owns_ray:
            return
        import ray

        ray.shutdown()
        _connect(self._address, self.output)

    def _forget_authentication(self) -> None:
        if self._owns_ray:
            reread_authentication()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with deferred_interrupt():
            self._stack.close()


def _import(modules: Sequence[str]) -> None:
    """Import modules ahead of their use; an import that fails here fails again, visibly, where it is needed."""
    with contextlib.suppress(Exception):
        for name in modules:
            importlib.import_module(name)


def _connect(address: str | None, output: CapturedOutput) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.WARNING, "job_config": job_config()}
    # `ray.init` replaces SIGTERM's handler by one that ends the process.
    with process_output_to(output.receive), restored_signal_handlers():
        if not address:
            with loopback_only(), working_folder_not_copied():
                # Without an address, Ray joins whichever cluster was last started on this machine, by any user.
                ray.init(address="local", include_dashboard=False, **options)
            return
        reread_authentication()
        try:
            ray.init(address=address, **options)
        except ray.exceptions.AuthenticationError as error:
            raise UserError(f"--address {address}: {first_line(error)}") from None
        except (ConnectionError, ValueError, RuntimeError) as error:
            hint = "; a cluster with token authentication needs RAY_AUTH_MODE=token and ~/.ray/auth_token"
            hint = "" if _uses_token(os.getenv("RAY_AUTH_MODE")) else hint
            raise UserError(f"--address {address}: no Ray cluster there ({first_line(error)}){hint}") from None
        if _uses_token(os.getenv("RAY_AUTH_MODE")) and not _cluster_uses_token():
            raise UserError(
                f"--address {address}: that cluster uses no token, and its actors cannot reach a process with "
                "RAY_AUTH_MODE=token, which Ray sets where a process starts its own Ray; remove it from os.environ"
            )


def _uses_token(mode: str | None) -> bool:
    """Return whether a process with this value of ``RAY_AUTH_MODE`` authenticates by token."""
    return (mode or "").lower() == "token"


def _cluster_uses_token() -> bool:
    """Return whether the processes of the cluster authenticate by token; unlike an actor, a task reaches this one."""
    import ray

    return _uses_token(ray.get(ray.remote(num_cpus=0)(os.getenv).remote("RAY_AUTH_MODE")))
