"""Modules that users' code imports here, and that Ray's processes would not find.

Those have what is installed or on PYTHONPATH. Python also looks in the folder of the script, or in the working folder.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from raypipe.core.errors import UserError

_FIND = """
import importlib.util, sys
_, name, *folders = sys.argv
sys.path[:0] = folders
found = importlib.util.find_spec(name)
print(found and next(iter(found.submodule_search_locations or []), found.origin))
"""


def package_folders() -> list[str]:
    """Return the folder that raypipe is in, unless that is the one of installed packages."""
    folder = Path(__file__).resolve().parents[2]
    return [] if folder.name in ("site-packages", "dist-packages") else [str(folder)]


def check_imports(tree: ast.AST, file: Path) -> None:
    """Check that a user's file imports no module that is beside it, or that only this process finds.

    Raises
    ------
    UserError
        It does; names the module.
    """
    for module in dict.fromkeys(_imported(tree)):
        beside = (file.parent / f"{module}.py").is_file() or (file.parent / module / "__init__.py").is_file()
        where = "beside it" if beside else folder_of_script(module)
        if where:
            raise UserError(
                f"{file}: it imports '{module}', which is {where}; a run keeps one file: put both into one, or "
                "install them as a package"
            )


def _imported(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def folder_of_script(module: str) -> str:
    """Return which folder a module is in if it is found only since this process was started there; empty if not."""
    place = _place(module)
    if place is None:
        return ""
    folders = {Path.cwd().resolve(): "in the working folder"}
    if script := getattr(sys.modules.get("__main__"), "__file__", None):
        folders[Path(script).resolve().parent] = "beside the script"
    where = folders.get(Path(place).resolve().parent, "")
    return where if where and not _is_found_elsewhere(module, place, Path.cwd()) else ""


def _place(module: str) -> str | None:
    """Return the file of a module, or the folder of a package, which is not imported; None if there is none."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a module that was made, such as __main__
        return None
    if found is None or found.origin in ("built-in", "frozen"):
        return None
    return next(iter(found.submodule_search_locations or []), found.origin)


@functools.cache
def _is_found_elsewhere(module: str, place: str, _: Path) -> bool:
    """Return whether a process of Ray would find the same module; `_` is the working folder."""
    command = [sys.executable, "-P", "-c", _FIND, module, *package_folders()]
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    lines = found.stdout.splitlines()
    return found.returncode != 0 or not lines or Path(lines[-1]).resolve() == Path(place).resolve()
