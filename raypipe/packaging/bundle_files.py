"""The files of a bundle, and what else a folder with one may not contain."""

from __future__ import annotations

import os
from pathlib import Path

from raypipe.core.errors import UserError
from raypipe.storage.files import LocalFolder
from raypipe.storage.regular_files import open_regular

RECORD, TENSORS, CARD = "bundle.json", "members.safetensors", "README.md"
FILES = (RECORD, TENSORS, CARD)
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".bin")


def empty_folder(path: Path) -> LocalFolder:
    """Return a folder for a bundle: a new or empty one, or one with a bundle, which is replaced.

    Raises
    ------
    UserError
        It is a file, or contains something else.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: a file; a bundle is a folder")
    folder = LocalFolder(path)
    foreign = [name for name in folder.names() if name not in FILES]
    if foreign:
        raise UserError(f"{path}: not a bundle, and not empty ({foreign[0]}); name a new folder")
    return folder


def require_bundle_files(path: Path) -> None:
    """Check that a folder contains no other files than those of a bundle.

    Raises
    ------
    UserError
        It does.
    """
    for folder, _, files in os.walk(path):
        for file in sorted(files):
            name = (Path(folder) / file).relative_to(path).as_posix()
            if name not in FILES:
                kind = ": a pickle, which may run code when it is read" if _is_pickle(path / name) else ""
                raise UserError(f"{path}/{name}{kind}: not part of a bundle; remove it if you put it there")


def _is_pickle(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            head = file.read(2)
    except (UserError, OSError):
        head = b""
    protocols = (b"\x02", b"\x03", b"\x04", b"\x05")
    return path.suffix.lower() in _PICKLE_SUFFIXES or (head[:1] == b"\x80" and head[1:] in protocols)
