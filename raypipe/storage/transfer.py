"""Runs and stores of windows copied between a folder and shared storage."""

from __future__ import annotations

from raypipe.core.errors import UserError
from raypipe.core.progress import Progress, no_progress
from raypipe.storage.files import open_folder
from raypipe.storage.run_store import RunStore

TRIES = 3
"""Times that a run is copied whose driver meanwhile removes what was listed."""


def copy_folder(source: str, target: str, *, last: tuple[str, ...] = (), progress: Progress = no_progress) -> int:
    """Copy every file of a folder or pyarrow.fs URI to another, each whole or not at all; how many there were.

    Parameters
    ----------
    source, target
        Paths or URIs.
    last
        Files that say that the rest is there: written when it is.
    progress
        Told of files done, files in all, and the file's name.

    Raises
    ------
    UserError
        `source` is empty, or one of them cannot be reached.
    """
    here, there = open_folder(source), open_folder(target)
    names = sorted(here.names(), key=lambda name: (name in last, name))
    if not names:
        raise UserError(f"{here.where}: nothing there to copy")
    for done, name in enumerate(names):
        progress(done, len(names), name)
        there.write(name, here.read(name))
    progress(len(names), len(names), "")
    return len(names)


def pull_run(run: str, target: str, *, progress: Progress = no_progress) -> int:
    """Copy a run to a folder; what a run that is being driven writes meanwhile may be in or not."""
    RunStore.open(run)
    for left in reversed(range(TRIES)):
        try:
            return copy_folder(run, target, progress=progress)
        except FileNotFoundError:  # its driver removes what it no longer needs
            if not left:
                raise
    raise AssertionError
