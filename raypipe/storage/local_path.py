"""Paths of this machine, where a URI is not meant."""

from __future__ import annotations

import re
from pathlib import Path

from raypipe.core.errors import UserError
from raypipe.storage.remote import without_settings

_SCHEME = re.compile(r"([A-Za-z][\w+.-]+):/+")
"""Beginning of a URI, of which `Path` keeps one slash. A drive of Windows has one letter."""


def local_path(where: str | Path, what: str, instead: str) -> Path:
    """Return a path of this machine, with ``~`` replaced.

    Parameters
    ----------
    where
        A path, or a URI by mistake, which would be a folder such as ``s3:`` here.
    what, instead
        What needs a path, as "windows are written"; what to do with a URI, for the message.

    Raises
    ------
    UserError
        It is a URI.
    """
    if _SCHEME.match(str(where)):
        uri = without_settings(_SCHEME.sub(r"\1://", str(where), count=1))
        raise UserError(f"{uri}: {what} on this machine only; {instead}")
    return Path(where).expanduser()


def local_file(where: str | Path, what: str, name: str, instead: str = "name a file here, and copy it") -> Path:
    """Return the path of a file to write on this machine, before time is spent on what it will hold.

    Parameters
    ----------
    where, what, instead
        See `local_path`.
    name
        An example of a file's name, for the message.

    Raises
    ------
    UserError
        It is a URI or a folder.
    """
    path = local_path(where, what, instead)
    if path.is_dir():
        raise UserError(f"{where}: a folder; name a file, such as {path / name}")
    return path
