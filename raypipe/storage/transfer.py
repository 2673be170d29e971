"""Copy folders between this machine and shared storage."""

from __future__ import annotations

import contextlib

from raypipe.core.errors import UserError
from raypipe.core.progress import Progress, no_progress
from raypipe.storage.files import open_folder
from raypipe.storage.outer_run import OuterRun
from raypipe.storage.records import PRETRAIN_FILE
from raypipe.storage.run_store import RunStore

PULL_ATTEMPTS = 3
"""Attempts to copy a run whose driver removes files between the listing and the copy."""


def copy_folder(source: str, target: str, *, last: tuple[str, ...] = (), progress: Progress = no_progress) -> int:
    """Copy every file of a folder to another, each whole or not at all, and return the number of files.

    Parameters
    ----------
    source, target
        Paths or pyarrow.fs URIs.
    last
        Names of files that are copied after all others.
    progress
        Called with the number of files copied, their total and the name of the next one.

    Raises
    ------
    UserError
        `source` is empty, or a folder cannot be reached.
    """
    here, there = open_folder(source), open_folder(target)
    names = sorted(here.names(), key=lambda name: (name in last, name))
    if not names:
        raise UserError(f"{here.where}: the folder is empty or does not exist")
    for done, name in enumerate(names):
        progress(done, len(names), name)
        there.write(name, here.read(name))
    progress(len(names), len(names), "")
    return len(names)


def pull_run(run: str, target: str, *, progress: Progress = no_progress) -> int:
    """Copy a run to a folder, and return the number of files.

    The run may be pretrained, or an outer cross-validation, which is copied with its parts. If it is being driven,
    files that are written during the copy may be missing.

    Raises
    ------
    UserError
        There is no run, or a folder cannot be reached.
    FileNotFoundError
        The driver removed listed files at every attempt.
    """
    if OuterRun.exists(run):
        _ = OuterRun(run).runs  # opens each part
    elif not open_folder(run).exists(PRETRAIN_FILE):
        RunStore.open(run)
    for _ in range(PULL_ATTEMPTS - 1):
        with contextlib.suppress(FileNotFoundError):
            return copy_folder(run, target, progress=progress)
    return copy_folder(run, target, progress=progress)
