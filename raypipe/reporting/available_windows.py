"""Open the windows of a run for its report, which downloads nothing."""

from __future__ import annotations

from raypipe.core.errors import UserError
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.run_windows import windows_of_run
from raypipe.storage.run_store import RunStore


def open_run_windows(run: RunStore) -> WindowStore | str:
    """Open the run's windows, or return why they cannot be used, in words that follow a colon."""
    if "://" in run.info.data:
        return "the windows are behind a URI, and a report downloads nothing."
    try:
        windows = open_windows(run.info.data)
    except (UserError, OSError):
        return "the windows of this run cannot be opened here."
    try:
        return windows_of_run(run, windows)
    except UserError:
        return "the windows have changed since the run was made."
