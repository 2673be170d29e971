"""Check that what has the name of a run's file or folder is one, and no link, fifo, or folder in place of a file.

Through a link raypipe would write elsewhere, and a trial whose folder is a link would not be listed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from raypipe.core.errors import DamagedFileError
from raypipe.storage.files import Folder, LocalFolder

_TRIAL = r"trials/(\d{4}|[1-9]\d{4,})"
_PART = r"(all|fold-\d+)"
"""Of a pretrained run."""
_FOLDERS = re.compile(
    rf"trials|compute|study|log|init|code|ensemble|requests|{_PART}|{_TRIAL}(/(log|predictions|fold-\d+))?"
)
_FILES = re.compile(
    r"(run|folds|options|driver|reruns|points|outer|pretrain)\.json|space\.py|driver\.lock|study\.journal"
    r"|(compute|study|init|ensemble|requests)/[^/.]+\.(json|jsonl|csv|npz|safetensors)"
    r"|code/[^/]+\.py"
    rf"|card\.json|encoder(-fold-\d+)?\.safetensors|{_PART}/(history\.json|epoch-\d+\.ckpt)"
    rf"|{_TRIAL}/((trial|history|result|retry)\.json|[^/.]+\.(npz|safetensors))"
    rf"|{_TRIAL}/(log/[^/.]+\.txt|predictions/epoch-\d+\.npz|fold-\d+/epoch-\d+\.ckpt)"
)
"""Names of folders and files that a run has."""
_WITHOUT_CONTENT = ("driver.lock",)
"""Files that may be removed."""


def misplaced(folder: Folder, *, whole: bool = True) -> list[str]:
    """Return a line for each file and folder of a run that is not of the kind that raypipe writes there.

    Parameters
    ----------
    folder
        The run's folder. Behind a URI there are files only.
    whole
        False for those directly in the folder only.
    """
    if not isinstance(folder, LocalFolder) or not folder.path.is_dir():
        return []
    return sorted(_misplaced(folder.path, "", whole))


def require_layout(folder: Folder, *, whole: bool = True) -> None:
    """Check a run's files and folders as `misplaced` does.

    Raises
    ------
    DamagedFileError
        Names the first that is not of the right kind.
    """
    if lines := misplaced(folder, whole=whole):
        more = f" (and {len(lines) - 1} more: raypipe doctor {folder.where})" if len(lines) > 1 else ""
        raise DamagedFileError(lines[0] + more)


def _misplaced(folder: Path, prefix: str, whole: bool) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        yield f"{folder}: cannot be read ({error.strerror}); correct its permissions"
        return
    for entry in entries:
        name = prefix + entry.name
        is_folder = _FOLDERS.fullmatch(name) is not None
        if not is_folder and not _FILES.fullmatch(name):
            continue
        if problem := _problem(entry, is_folder):
            fix = "remove it" if name in _WITHOUT_CONTENT else f"put the {_word(is_folder)} itself there"
            yield f"{entry.path}: {problem}; {fix}"
        elif is_folder and whole:
            yield from _misplaced(Path(entry.path), f"{name}/", whole)


def _problem(entry: os.DirEntry[str], is_folder: bool) -> str:
    """Return what an entry is in place of a folder or a file; empty if it is one."""
    if entry.is_symlink():
        return "a link, and raypipe writes through none"
    if entry.is_dir() if is_folder else entry.is_file():
        return ""
    found = "a folder" if entry.is_dir() else "a file" if entry.is_file() else ""
    return f"{found} where raypipe has a {_word(is_folder)}" if found else "not a regular file"


def _word(is_folder: bool) -> str:
    return "folder" if is_folder else "file"
