"""Unpack a submission, and run the scorer on it in a separate process."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from raypipe.core.errors import UserError
from raypipe.packaging import scorer

MAX_UNPACKED_BYTES = 4 * 2**30


class LayoutError(Exception):
    """A submission is not safe to unpack, or not flat.

    Parameters
    ----------
    check
        Name of the check that failed.
    detail
        The reason, and the fix.
    """

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(detail)
        self.check, self.detail = check, detail


class ScorerProcessError(Exception):
    """The scorer's process died, or did not end in time."""


def unpack_submission(path: Path, folder: Path) -> str:
    """Unpack a submission into a folder; return how many files it has and how large it is.

    Raises
    ------
    UserError
        `path` is not a zip file, is damaged, or has no ``submission.py`` at all.
    LayoutError
        Files would be written elsewhere, or are in folders.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError):
        raise UserError(f"{path}: not a zip file") from None
    with archive:
        members = archive.infolist()
        _require_layout(path, members)
        try:
            for member in members:
                (folder / member.filename).write_bytes(archive.read(member))
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise UserError(f"{path}: damaged ({error})") from None
    return f"{len(members)} files, {path.stat().st_size / 2**20:.1f} MB"


def _require_layout(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if not any(PurePosixPath(name.replace("\\", "/")).name == "submission.py" for name in names):
        raise UserError(f"{path}: no submission.py in it; make one with: raypipe export RUN OUT.zip")
    if problem := _unsafe(members):
        raise LayoutError("safe to unpack", problem)
    nested = [name for name in names if "/" in name]
    if nested:
        more = "" if "submission.py" in names else "; the scorer looks for submission.py at the top"
        raise LayoutError(
            "flat", f"'{nested[0]}' is in a folder; all files must be at the top{more}: zip the files, not the folder"
        )


def _unsafe(members: list[zipfile.ZipInfo]) -> str | None:
    """Return why an archive is not safe to unpack, or None."""
    seen: set[str] = set()
    for member in members:
        if problem := _unsafe_member(member):
            return problem
        if member.filename in seen:
            return f"'{member.filename}' is in it twice: programs differ in which of them they unpack"
        seen.add(member.filename)
    size = sum(member.file_size for member in members)
    return f"unpacked it would take {size / 2**30:.1f} GB" if size > MAX_UNPACKED_BYTES else None


def _unsafe_member(member: zipfile.ZipInfo) -> str | None:
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    pure = PurePosixPath(name.replace("\\", "/"))
    if not pure.name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
        return f"'{name}' would be written outside the folder it is unpacked to"
    if stat.S_ISLNK(kind):
        return f"'{name}' is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"'{name}' is not a file"
    return None


def run_scorer(folder: Path, scratch: Path, request: dict[str, Any], *, timeout: float | None = None) -> Any:
    """Run `scorer` on an unpacked submission, and return its answer.

    The process is isolated (``python -I``): neither PYTHONPATH nor the current folder can be imported from.

    Parameters
    ----------
    folder
        The unpacked submission.
    scratch
        An existing folder for the request, the answer and the process's working directory.
    request
        See `scorer`.
    timeout
        Seconds.

    Raises
    ------
    ScorerProcessError
        The process died, or did not end in time.
    """
    request_file, answer_file, cwd = scratch / "request.json", scratch / "answer.json", scratch / "cwd"
    cwd.mkdir()
    request_file.write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-I", str(scorer.__file__), str(folder), str(request_file), str(answer_file)]
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ScorerProcessError(f"the scorer's process did not end within {timeout:g} s") from None
    if not answer_file.is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ScorerProcessError(f"the scorer's process died (exit status {done.returncode}): {last[:300]}")
    return json.loads(answer_file.read_bytes())
