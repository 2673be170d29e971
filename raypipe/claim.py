"""A folder for windows, taken by one `prepare`: no foreign files in it, the same settings, nobody else at work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raypipe.errors import UserError
from raypipe.files import TEMPORARY, lock, write_whole
from raypipe.windows import SETTINGS, SHARDS, Settings


@contextlib.contextmanager
def claim(folder: Path, asked: Settings, keys: set[str]) -> Iterator[None]:
    """Make the folder this run's own for as long as this lasts.

    Parameters
    ----------
    folder
        For windows; made if need be.
    asked
        Settings that the windows that are there must have been made with.
    keys
        Of the recordings; some of what is there must be of these.

    Raises
    ------
    UserError
        Foreign files, other settings, another data set, or another process at work.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, not a folder for windows")
    path = folder / SETTINGS
    made = {entry.stem for entry in (folder / SHARDS).glob("*.json")}
    # Recordings without a window leave no shard to protect: a prepare that found none at all may be put right.
    finished = any((folder / SHARDS / f"{stem}.npy").is_file() for stem in made)
    if path.is_file() and finished:
        _check_same(path, asked)
    elif not path.is_file() and folder.is_dir() and any(not e.name.endswith(TEMPORARY) for e in folder.iterdir()):
        raise UserError(f"{folder}: holds other files and is not a store of windows; choose another folder")
    else:
        write_whole(path, lambda file: file.write(asked.model_dump_json(indent=1).encode() + b"\n"))
    with open(path, "rb") as file:
        if not lock(file):
            raise UserError(f"{folder}: another prepare is at work there; wait for it to end")
        if finished and not made & keys:
            raise UserError(f"{folder}: holds windows of another data set; choose another folder")
        yield


def _check_same(path: Path, asked: Settings) -> None:
    try:
        before = Settings.model_validate_json(path.read_bytes())
    except ValidationError:
        raise UserError(f"{path}: damaged; delete the folder {path.parent} or choose another") from None
    for name in Settings.model_fields:
        old, new = getattr(before, name), getattr(asked, name)
        if old != new:
            raise UserError(
                f"{path.parent}: was made with {name} {_show(old)}, not {_show(new)}; choose another folder for --out"
            )


def _show(value: Any) -> str:
    if value is None:
        return "left to its default"
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"'{value}'"


def clean(folder: Path, keys: set[str]) -> None:
    """Remove what a killed run left half-written, and shards of recordings that are gone."""
    for path in (folder / SHARDS).glob("*"):
        if path.name.endswith(TEMPORARY) or (path.suffix in (".npy", ".json") and path.stem not in keys):
            path.unlink()
