"""Connection of a driver to Ray: joins a cluster or starts Ray on this machine, and leaves it."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from raypipe.backend.connection import connect, folder_error, folder_for_ray, provide_token
from raypipe.backend.control_store import ControlStoreWatch
from raypipe.backend.join_compat import address_of_job
from raypipe.backend.output import CapturedOutput
from raypipe.backend.process_state import deferred_interrupt, logger_to, restored_process_state
from raypipe.backend.ray_compat import (
    SETTINGS,
    SHUTDOWN_MODULES,
    no_automatic_start,
    reread_authentication,
)
from raypipe.core.errors import UserError
from raypipe.storage.scratch import scratch_folder
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
    folder
        Private folder (mode 0700) of Ray's own files, once `start` was called; removed at the end.
    """

    folder: Path

    def __init__(self, address: str | None, callback: SweepCallback, preload: Sequence[str] = ()) -> None:
        self._preload = ("raypipe.backend.worker_groups", *preload)
        self._address, self._callback = address, callback
        self.output = CapturedOutput()
        self._stack = contextlib.ExitStack()
        self._started = self._owns_ray = False
        self._watch: ControlStoreWatch | None = None

    def __enter__(self) -> Cluster:
        return self

    def start(self) -> None:
        """Join Ray or start it; a second call does nothing. A Ray that the caller has started is used as it is.

        Raises
        ------
        UserError
            Ray does not start, there is no cluster at the address, or it needs a token and this process has none, or
            the reverse.
        """
        if self._started:
            return
        self._started = True
        self._stack.callback(self._forget_authentication)  # after the environment is restored
        self._stack.enter_context(restored_process_state())
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        if self._address and self._address in ("auto", os.environ.get("RAY_ADDRESS")):
            self._address = address_of_job() or self._address
        self._callback.on_ray_start(self._address)
        import ray

        imports = threading.Thread(target=_import, args=(self._preload,), daemon=True)
        imports.start()
        self._owns_ray = not ray.is_initialized()
        self.folder = self._make_folder(for_sockets=self._owns_ray and not self._address)
        if self._owns_ray:
            self._stack.enter_context(logger_to("ray", self.output))
            self._stack.callback(ray.shutdown)
            if not self._address:
                provide_token(self.folder)
            connect(self._address, self.folder, self.output)
        self._stack.callback(self._stop_watch)
        self._start_watch()
        imports.join()

    def _make_folder(self, *, for_sockets: bool) -> Path:
        base = folder_for_ray(for_sockets=for_sockets)
        try:
            return self._stack.enter_context(scratch_folder(base))
        except OSError as error:
            raise folder_error(error, base) from None

    def restart(self) -> None:
        """Leave Ray and join or start it again, which releases everything that the sweep held.

        A Ray that the caller has started is kept.
        """
        if not self._owns_ray:
            return
        import ray

        with no_automatic_start():  # by a thread of the sweep that has been left waiting for a control store
            ray.shutdown()
            self._stop_watch()  # until here, Ray may end this process
            try:
                connect(self._address, self.folder, self.output)
            except UserError as error:
                raise UserError(f"{error}; the same command continues from here") from None
        self._start_watch()

    @property
    def store_away(self) -> bool:
        """Return whether Ray's control store (GCS) is away, so that calls that need it wait."""
        return self._watch is not None and self._watch.away

    @property
    def store_lost(self) -> bool:
        """Return whether the control store has been away for so long that this process must leave Ray, or be ended.

        A Ray that the caller has started is not left.
        """
        return self._owns_ray and self._watch is not None and self._watch.lost

    def _start_watch(self) -> None:
        import ray

        if ray.is_initialized():
            address = ray.get_runtime_context().gcs_address
            self._watch = ControlStoreWatch(address, self._callback.on_warning, _prepare_to_leave)
            self._watch.start()

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _forget_authentication(self) -> None:
        if self._owns_ray:
            reread_authentication()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with deferred_interrupt():
            self._stack.close()


def _prepare_to_leave() -> None:
    """Import what ``ray.shutdown`` imports, which on a busy machine takes longer than Ray lets this process live."""
    threading.Thread(target=_import, args=(SHUTDOWN_MODULES,), daemon=True).start()


def _import(modules: Sequence[str]) -> None:
    """Import modules ahead of their use; an import that fails here fails again, visibly, where it is needed."""
    with contextlib.suppress(Exception):
        for name in modules:
            importlib.import_module(name)
