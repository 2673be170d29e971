"""Unpack a submission's zip, which may be damaged, or made to escape its folder or to fill the disk."""

from __future__ import annotations

import io
import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from raypipe.core.errors import UserError, disk_full
from raypipe.core.text import short_line

MAX_UNPACKED_BYTES = 4 * 2**30
MAX_RATIO = 100
"""Size of the files over that of the zip, from `RATIO_BYTES` on. Weights are compressed by less than two."""
RATIO_BYTES = 64 * 2**20
MAX_FILES = 1000
_MAX_READ = 2**22
"""Bytes that are read at a time. It limits the list of files, which is read in one piece."""

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,  # a password is needed
    NotImplementedError,  # an unknown compression
    ValueError,
    MemoryError,  # an absurd dictionary of LZMA
    IndexError,
    OverflowError,
)
"""Errors of zipfile and of the decompressors for damaged data, beside OSError."""


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


class _BoundedFile(io.FileIO):
    """A file that is not read in large pieces: zipfile reads as much as the zip says, before it checks anything."""

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, Path(self.name).stat().st_size - self.tell())
        wanted = rest if size is None or size < 0 else min(size, rest)
        if wanted > _MAX_READ:
            raise zipfile.BadZipFile(f"its list of files takes {wanted / 2**20:.0f} MB")
        return super().read(wanted) or b""


def unpack_submission(path: Path, folder: Path) -> str:
    """Unpack a submission into a folder; return how many files it has and how large it is.

    Raises
    ------
    UserError
        `path` is not a zip file, is damaged, or has no ``submission.py`` at all.
    LayoutError
        Files would be written elsewhere, are in folders, or would fill the disk.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():
        raise UserError(f"{path}: not a file; a submission is a zip file")
    with _open(path) as archive:
        members = archive.infolist()
        _require_layout(path, members)
        for member in members:
            _unpack(path, archive, member, folder / member.filename)
    return f"{len(members)} files, {path.stat().st_size / 2**20:.1f} MB"


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(_BoundedFile(path))
    except (OSError, *DAMAGE) as error:
        known = isinstance(error, zipfile.BadZipFile) and "not a zip" not in str(error)
        raise UserError(f"{path}: not a zip file" + (f" ({_line(error)})" if known else "")) from None


def _unpack(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    try:
        with archive.open(member) as source, open(target, "xb") as file:
            shutil.copyfileobj(source, file, 2**20)
    except (OSError, *DAMAGE) as error:
        if isinstance(error, OSError) and (full := disk_full(error, target)):
            raise full from None
        raise UserError(f"{path}: damaged ({short_line(member.filename)}: {_line(error)})") from None


def _require_layout(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if not any(PurePosixPath(name.replace("\\", "/")).name == "submission.py" for name in names):
        raise UserError(f"{path}: no submission.py in it; make one with: raypipe export RUN OUT.zip")
    if problem := _unsafe(members, path.stat().st_size):
        raise LayoutError("safe to unpack", problem)
    nested = [name for name in names if "/" in name]
    if nested:
        more = "" if "submission.py" in names else "; the scorer looks for submission.py at the top"
        raise LayoutError(
            "flat",
            f"'{short_line(nested[0])}' is in a folder; all files must be at the top{more}: zip the files, not the "
            "folder",
        )


def _unsafe(members: Sequence[zipfile.ZipInfo], zip_bytes: int) -> str | None:
    """Return why an archive is not safe to unpack, or None."""
    if len(members) > MAX_FILES:
        return f"it has {len(members):,} files; at most {MAX_FILES:,} are unpacked"
    seen: set[str] = set()
    for member in members:
        if problem := _unsafe_member(member):
            return problem
        if member.filename.casefold() in seen:
            return f"'{short_line(member.filename)}' is in it twice: programs differ in which of them they unpack"
        seen.add(member.filename.casefold())
    size = sum(member.file_size for member in members)
    if size > MAX_UNPACKED_BYTES:
        return f"unpacked it would take {size / 2**30:.1f} GB"
    if size > max(RATIO_BYTES, MAX_RATIO * zip_bytes):
        return f"unpacked it would take {size / 2**30:.2f} GB, {size / zip_bytes:.0f} times as much as the zip"
    return None


def _unsafe_member(member: zipfile.ZipInfo) -> str | None:
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    pure = PurePosixPath(name.replace("\\", "/"))
    if not pure.name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
        return f"'{short_line(name)}' would be written outside the folder it is unpacked to"
    if not name.isprintable() or len(name.encode(errors="surrogatepass")) > 255:
        return f"'{short_line(name)}' is not a name that every system can store"
    if stat.S_ISLNK(kind):
        return f"'{short_line(name)}' is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"'{short_line(name)}' is not a file"
    return None


def _line(error: BaseException) -> str:
    """Return an error's message as one short line."""
    return short_line(" ".join(str(error).split()) or type(error).__name__)
