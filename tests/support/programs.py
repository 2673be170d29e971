"""Programs that tests need beside Python. Where one is missing, its tests are skipped, and in CI they fail."""

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
    """Return the path of a program; skip the test where there is none.

    Parameters
    ----------
    name
        Of the program.
    install
        The command that installs it, such as ``apt-get install redis-server``.
    found
        Its path, where it may have several names or stand off the PATH.
    """
    path = found or shutil.which(name)
    if path is None:
        missing_program(name, install)
    return path


def missing_program(name: str, install: str) -> NoReturn:
    """Skip the test for want of a program; fail in CI (``CI=true``), where what is skipped would prove nothing."""
    reason = f"{MARK}{name}; {install}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
