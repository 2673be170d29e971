"""Programs that tests need beside Python. If one is missing, its tests are skipped; in CI they fail."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

MARK = "missing program: "
"""Reasons of such skips begin with it."""
SKIPS = "RAYPIPE_TEST_SKIPS"
"""Environment variable: the file to which `tests/conftest.py` adds the reason of each skipped test."""


def need_program(name: str, install: str, found: str | None = None) -> str:
    """Return the path of a program; skip the test if it is missing.

    Parameters
    ----------
    name
        Name of the program.
    install
        The command that installs it, such as ``apt-get install redis-server``.
    found
        Its path, for a program that has several names or is not on the PATH.
    """
    path = found or shutil.which(name)
    if path is None:
        missing_program(name, install)
    return path


def missing_program(name: str, install: str) -> NoReturn:
    """Skip the test because a program is missing; in CI (``CI=true``), where a skip proves nothing, fail."""
    reason = f"{MARK}{name}; {install}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
