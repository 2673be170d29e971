"""Users' files in a run's folder: kept when the run is made, used by everything after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

from raypipe.core.errors import DamagedFileError
from raypipe.core.own_code import SourceFile, file_of, keep_source, known_source
from raypipe.core.own_metrics import split_code
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


def write_metric(folder: Folder, metric: str) -> None:
    """Write the file of a run's metric, if that is a user's."""
    if (source := known_source(split_code(metric)[1])) is not None:
        folder.write(code_file(source.name, source.sha256), source.text.encode())


def read_metric(folder: Folder, metric: str) -> None:
    """Read the file of a run's metric, if that is of a user's file, and make it known to this process.

    Raises
    ------
    DamagedFileError
        It is missing, or was changed since the run was made.
    """
    name, code = split_code(metric)
    path = file_of(name)
    if code and path is not None:
        _keep(folder, path, code)


def read_code(folder: Folder, recorded: Mapping[str, str]) -> dict[str, SourceFile]:
    """Read the files of a run, and make them known to this process.

    Raises
    ------
    DamagedFileError
        One is missing, or was changed since the run was made.
    """
    return {path: _keep(folder, path, sha256) for path, sha256 in recorded.items()}


def _keep(folder: Folder, path: str, sha256: str) -> SourceFile:
    """Read a file with this hash, or these first digits of it; make it known to this process."""
    name = code_file(path, sha256)
    try:
        source = SourceFile(PurePath(path).name, folder.read(name).decode(errors="replace"))
    except FileNotFoundError:
        raise DamagedFileError(f"{folder.where}/{name}: missing; restore it from a copy") from None
    if not source.sha256.startswith(sha256):
        raise DamagedFileError(f"{folder.where}/{name}: changed since the run was made; restore it")
    keep_source(source)
    return source
