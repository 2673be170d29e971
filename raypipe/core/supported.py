"""What raypipe runs on. Imported before anything else, by every Python, so it uses what old ones have."""

from __future__ import annotations

import sys

LOWEST_PYTHON = (3, 11)


def unsupported() -> str:
    """Return why raypipe does not run here, in one line; an empty text where it does."""
    if sys.platform == "win32":
        return "raypipe does not run on Windows, only on Linux and macOS; in WSL 2 it does"
    if sys.version_info < LOWEST_PYTHON:
        lowest, here = (".".join(map(str, version[:2])) for version in (LOWEST_PYTHON, sys.version_info))
        return f"raypipe needs Python {lowest} or later; this is {here} ({sys.executable})"
    return ""
