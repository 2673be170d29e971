"""Files that come with raypipe beside its modules: search spaces, tested versions, and what `raypipe init` writes."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

from raypipe.core.errors import UserError, nearest

DISTRIBUTION = "raypipe-eeg"
"""What pip calls raypipe."""
_PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """Return the path of a file or folder that comes with raypipe: in its package, or in its clone where there is one.

    Parameters
    ----------
    name
        Path within the clone, such as ``deploy/slurm.sh``.

    Raises
    ------
    UserError
        This installation lacks it.
    """
    if (found := _find(name)) is None:
        raise UserError(f"{name}: missing from this installation of raypipe; install it again from a wheel or a clone")
    return found


def _find(name: str) -> Path | None:
    folders = (_PACKAGE / "shipped", _PACKAGE.parent)  # the wheel copies these files into the first
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def tested_versions() -> dict[str, str]:
    """Return the versions that raypipe is tested with, by package (constraints.txt); empty if the file is missing."""
    if (file := _find("constraints.txt")) is None:  # a job of a cluster is sent the modules only
        return {}
    pairs = (line.split("==") for line in file.read_text().splitlines() if "==" in line)
    return {name.strip().lower(): version.strip() for name, version in pairs}


def install_command(extra: str = "") -> str:
    """Return the command that installs what raypipe needs in its tested versions, with an extra."""
    file, package = _find("constraints.txt"), f"'{DISTRIBUTION}[{extra}]'" if extra else DISTRIBUTION
    return "pip install " + (f"-c {shlex.quote(str(file))} " if file else "") + package


def shipped_spaces() -> dict[str, Path]:
    """Return the files of the search spaces that come with raypipe, by name, in alphabetical order."""
    return {path.stem: path for path in sorted(shipped("search_spaces").glob("*.py"))}


def shipped_space(name: str) -> Path:
    """Return the file of a search space that comes with raypipe.

    Raises
    ------
    UserError
        There is none of that name.
    """
    spaces = shipped_spaces()
    if name not in spaces:
        raise UserError(f"{name}: not a search space that comes with raypipe; {nearest(name, spaces)}")
    return spaces[name]


def summary(path: Path) -> str:
    """Return the first line of a Python file's docstring; the file is not run."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def find_space(space: str | Path) -> Path:
    """Return the file of a search space: of the one that comes with raypipe, for a bare name; else a path.

    Parameters
    ----------
    space
        ``all_families``, or a path such as ``my_space.py``. A name that ends in ``.py``, or has a folder, is a path.

    Raises
    ------
    UserError
        No search space has that name, or there is no such file.
    """
    path = Path(space)
    if path.suffix != ".py" and len(path.parts) == 1 and (path.name in shipped_spaces() or not path.is_file()):
        return shipped_space(path.name)
    if not path.is_file():
        hint = f"; without .py, {path.stem} is one that comes with raypipe" if path.stem in shipped_spaces() else ""
        raise UserError(f"{path}: no such search space{hint}")
    return path
