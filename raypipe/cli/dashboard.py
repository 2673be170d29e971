"""Serve a run's study in optuna-dashboard, to this machine only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from raypipe.core.errors import UserError
from raypipe.core.shipped import install_command
from raypipe.search.reconcile import read_study
from raypipe.storage.journal import open_journal
from raypipe.storage.run_store import RunStore


def serve(run: RunStore, port: int, ready: Callable[[str], object]) -> None:
    """Serve optuna-dashboard on a run's study, to this machine only, until it is interrupted.

    Parameters
    ----------
    run
        The run. It changes only if it is changed in the dashboard.
    port
        Port on 127.0.0.1.
    ready
        Called with the address, before the first request is answered.

    Raises
    ------
    UserError
        optuna-dashboard is not installed, the run has no study yet, or the port is taken.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise UserError(f"dashboard: optuna-dashboard is not installed; {install_command('dashboard')}") from None
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    class SilentHandler(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    storage = open_journal(run, writable=False)
    if read_study(run, storage) is None:
        raise UserError(f"{run.where}: no study yet; start one with: raypipe sweep")
    try:
        server = make_server("127.0.0.1", port, wsgi(storage), handler_class=SilentHandler)
    except OSError as error:
        raise UserError(f"--port {port}: cannot listen on it ({error.strerror}); choose another") from None
    with server, contextlib.suppress(KeyboardInterrupt):
        ready(f"http://127.0.0.1:{server.server_port}/dashboard/")
        server.serve_forever()
