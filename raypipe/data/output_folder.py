"""The folder that `prepare` writes to: for one process at a time, one data set and one set of settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from raypipe.core.errors import UserError
from raypipe.core.record import OtherFormatError
from raypipe.data.manifest import MANIFEST, SETTINGS, SHARDS, Settings, SettingsFile
from raypipe.storage.files import PARTIAL_SUFFIX, lock, write_atomic
from raypipe.storage.local_path import local_path
from raypipe.storage.regular_files import read_whole

OF_THE_TABLE = ("max_windows", "min_windows", "seed", "groups", "metric")
"""Settings that the table of a store depends on, but no shard."""


def store_folder(out: str | Path) -> Path:
    """Return the absolute path of a folder for windows; raises UserError if it is a URI."""
    return local_path(
        out, "windows are written", "name a folder here, then copy it: raypipe push FOLDER URI"
    ).absolute()


@contextlib.contextmanager
def claim_output(folder: Path, asked: Settings, keys: set[str]) -> Iterator[None]:
    """Check the folder, record the settings in it, and lock it for the duration of the block.

    Parameters
    ----------
    folder
        Folder for windows; made if it does not exist.
    asked
        Settings that the windows in it must have been made with, but for those of the table of a store that is not
        finished.
    keys
        Keys of the recordings. Windows in the folder must be of some of them.

    Raises
    ------
    UserError
        The folder has foreign files, windows of other settings or of another data set, or is locked.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, not a folder for windows")
    path = folder / SETTINGS
    with contextlib.ExitStack() as locks:
        if path.is_file():
            # Also where it is replaced below: it may be that of a process that is writing there.
            locks.enter_context(_locked(path))
        elif _has_files(folder):
            raise UserError(f"{folder}: has other files and is not a store of windows; choose another folder")
        recorded = {entry.stem for entry in (folder / SHARDS).glob("*.json")}
        # A recording without a window has a record but no .npy file. If there are no others, settings may change.
        has_windows = any((folder / SHARDS / f"{key}.npy").is_file() for key in recorded)
        before = _settings_of_windows(path, asked) if path.is_file() and has_windows else None
        if has_windows and not recorded & keys:
            raise UserError(f"{folder}: has windows of another data set; choose another folder")
        if before != asked:
            write_atomic(path, lambda file: file.write(SettingsFile(settings=asked).to_json()))
            locks.enter_context(_locked(path))
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "rb") as file:
        if not lock(file):
            raise UserError(f"{path.parent}: another prepare is writing there; wait for it to end")
        yield


def remove_leftovers(folder: Path, keys: set[str]) -> None:
    """Remove partial files of a killed process, and shards of recordings that are not in `keys`."""
    for path in (folder / SHARDS).glob("*"):
        if path.name.endswith(PARTIAL_SUFFIX) or (path.suffix in (".npy", ".json") and path.stem not in keys):
            path.unlink()


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(not entry.name.endswith(PARTIAL_SUFFIX) for entry in folder.iterdir())


def _settings_of_windows(path: Path, asked: Settings) -> Settings:
    """Return the settings that windows in the folder were made with, and check that they are those asked for.

    Without a manifest the store is not finished, and settings of its table may change: shards do not depend on them.
    """
    try:
        before = SettingsFile.parse(read_whole(path), str(path)).settings
    except OtherFormatError:
        raise
    except UserError:
        raise UserError(f"{path}: damaged; delete the folder {path.parent} or choose another") from None
    is_finished = (path.parent / MANIFEST).is_file()
    for name, old, new in _values(before, asked):
        if old == new or (name in OF_THE_TABLE and not is_finished):
            continue
        made = f"{path.parent}: was made with {name} {_shown(old)}, not {_shown(new)}"
        if is_finished:
            raise UserError(f"{made}; choose another folder for --out")
        raise UserError(f"{made}, but holds no finished store; delete it, or choose another folder for --out")
    return before


def _values(before: Settings, asked: Settings) -> Iterator[tuple[str, object, object]]:
    """Return the name of each setting and of each step of preprocessing, with its values."""
    for one, other in ((before, asked), (before.preprocessing, asked.preprocessing)):
        for name in type(one).model_fields:
            if name != "preprocessing":
                yield name, getattr(one, name), getattr(other, name)


def _shown(value: object) -> str:
    if value in (None, ()):
        return "left to its default"
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"'{value}'"
