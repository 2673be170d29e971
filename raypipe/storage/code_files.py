"""Users' files of networks in a run's folder: kept when the run is made, used by everything after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

from raypipe.core.errors import DamagedFileError
from raypipe.core.own_code import SourceFile, keep_source
from raypipe.storage.files import Folder


def code_file(path: str, sha256: str) -> str:
    """Return where a user's file is kept in a run."""
    return f"code/{sha256[:16]}-{PurePath(path).name}"


def hashes(files: Mapping[str, SourceFile]) -> dict[str, str]:
    """Return the SHA-256 of files by the paths that name them, as a run's record has them."""
    return {path: source.sha256 for path, source in files.items()}


def write_code(folder: Folder, files: Mapping[str, SourceFile]) -> None:
    """Write files to a run's folder."""
    for path, source in files.items():
        folder.write(code_file(path, source.sha256), source.text.encode())


def read_code(folder: Folder, recorded: Mapping[str, str]) -> dict[str, SourceFile]:
    """Read the files of a run, and make them known to this process.

    Raises
    ------
    DamagedFileError
        One is missing, or was changed since the run was made.
    """
    files = {}
    for path, sha256 in recorded.items():
        name = code_file(path, sha256)
        try:
            source = SourceFile(PurePath(path).name, folder.read(name).decode(errors="replace"))
        except FileNotFoundError:
            raise DamagedFileError(f"{folder.where}/{name}: missing; restore it from a copy") from None
        if source.sha256 != sha256:
            raise DamagedFileError(f"{folder.where}/{name}: changed since the run was made; restore it")
        keep_source(source)
        files[path] = source
    return files
