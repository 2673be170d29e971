"""Open the windows that a run was made from."""

from __future__ import annotations

from raypipe.core.errors import UserError
from raypipe.data.window_cache import open_windows
from raypipe.data.window_store import WindowStore
from raypipe.storage.outer_run import OuterRun
from raypipe.storage.run_store import RunStore


def windows_of_run(run: RunStore | OuterRun, windows: WindowStore | None = None) -> WindowStore:
    """Return the windows that a run was made from; None opens them.

    Raises
    ------
    UserError
        They cannot be opened, or have changed since: other targets, or other preprocessing, than the run's.
    """
    windows = open_windows(run.info.data) if windows is None else windows
    if windows.data_hash != run.info.data_hash:
        raise UserError(
            f"{windows.where}: not the windows that {run.where} was made from (hash {windows.data_hash[:12]}, the run "
            f"has {run.info.data_hash[:12]})"
        )
    return windows
