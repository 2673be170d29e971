"""Systems that raypipe does not support give one line, by code that old versions of Python can read."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import raypipe
from raypipe.__main__ import main
from raypipe.core.supported import LOWEST_PYTHON, unsupported

PACKAGE = Path(raypipe.__file__).parent


@pytest.fixture(params=["windows", "old python"])
def elsewhere(request, monkeypatch):
    """Pretend to be on a system that is not supported; return what the line about it says."""
    if request.param == "windows":
        monkeypatch.setattr(sys, "platform", "win32")
        return "does not run on Windows"
    monkeypatch.setattr(sys, "version_info", (3, 10, 14, "final", 0))
    return f"needs Python 3.11 or later; this is 3.10 ({sys.executable})"


def test_it_runs_here():
    assert unsupported() == ""


def test_the_command_is_one_line_elsewhere(elsewhere, capsys):
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("raypipe: error: raypipe ") and elsewhere in line


def test_python_says_so_where_a_name_is_first_used(elsewhere):
    # Not `raypipe.sweep`: a test that has replaced it leaves it in the module, where it is found without this function.
    with pytest.raises(ImportError) as caught:
        raypipe.__getattr__("sweep")
    assert elsewhere in str(caught.value)


@pytest.mark.parametrize("name", ["__init__.py", "__main__.py", "core/__init__.py", "core/supported.py"])
def test_what_runs_before_the_line_can_be_read_by_old_pythons(name):
    tree = ast.parse((PACKAGE / name).read_text(), feature_version=(3, 7))
    top = {n.module for n in tree.body if isinstance(n, ast.ImportFrom)} | {
        alias.name for n in tree.body if isinstance(n, ast.Import) for alias in n.names
    }
    assert top <= {"__future__", "os", "signal", "sys", "typing", "raypipe.core.supported"}


def test_it_is_the_lowest_version_that_pip_allows():
    project = (PACKAGE.parent / "pyproject.toml").read_text()
    assert f'requires-python = ">={".".join(map(str, LOWEST_PYTHON))}"' in project
