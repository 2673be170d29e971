"""What only the process of a script finds is refused: workers look in no folder of a script, nor in the working one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import raypipe
from tests.support.own import NET

SCRIPT = """
import sys
from raypipe.core.errors import UserError
from raypipe.core.search_space import load_space
try:
    load_space({"model/name": sys.argv[1]} if ":" in sys.argv[1] else sys.argv[1]).draw(1)
except UserError as error:
    print(error)
"""
SPACE = "def space(trial):\n    return {'model/name': 'net.py:Net'}\n"


@pytest.fixture
def project(tmp_path):
    """A script beside a module, a package, and a folder of networks of which one imports the module."""
    files = {
        "script.py": SCRIPT,
        "helper.py": "scale = 3\n",
        "package/nets.py": NET,
        "nets/net.py": f"import torch\nfrom helper import scale\n{NET}",
        "nets/space.py": SPACE,
        "plain/net.py": f"import numpy, raypipe.models\nfrom tests.support import own\n{NET}",
        "plain/space.py": SPACE,
        "elsewhere/.keep": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def said(project, space, cwd="elsewhere", on_path=(), script="script.py"):
    """Return what the script prints of a space, run from a folder of the project."""
    path = os.pathsep.join(map(str, (Path(raypipe.__file__).parents[1], *on_path)))
    command = [sys.executable, *([project / script] if script.endswith(".py") else ["-c", script]), space]
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=project / cwd, env=environ, capture_output=True, text=True, check=True)
    return done.stdout.strip().replace(str(project), "HERE")


def test_a_file_that_imports_a_module_beside_the_script_is_one_line(project):
    line = "it imports 'helper', which is {}; a run keeps one file: put both into one, or install them as a package"
    space = project / "nets/space.py"
    assert said(project, space) == f"HERE/nets/net.py: {line.format('beside the script')}"
    assert said(project, space, ".", script=SCRIPT) == f"HERE/nets/net.py: {line.format('in the working folder')}"
    assert said(project, "nets/net.py:Net", ".") == f"HERE/nets/net.py: {line.format('beside the script')}"


def test_a_package_in_the_folder_of_the_script_is_one_line(project):
    line = "model/name: 'package.nets:Net': package is beside the script, where workers do not look: install it"
    assert said(project, "package.nets:Net") == f"the search space: {line}"
    (project / "package/__init__.py").touch()
    assert said(project, "package.nets:Net") == f"the search space: {line}"


def test_what_workers_find_is_imported(project):
    space = project / "nets/space.py"
    assert said(project, project / "plain/space.py", cwd=".") == ""
    assert said(project, project / "plain/space.py", cwd=Path(raypipe.__file__).parents[1]) == ""
    for cwd in ("elsewhere", "."):
        assert said(project, space, cwd=cwd, on_path=[project]) == ""
        assert said(project, "package.nets:Net", cwd=cwd, on_path=[project]) == ""
    (project / "other").mkdir()
    (project / "helper.py").rename(project / "other/helper.py")
    assert said(project, space, on_path=[project / "other"]) == ""


def test_a_folder_that_each_python_looks_in_is_one_of_workers(project):
    """As that of an editable install."""
    (project / "other").mkdir()
    (project / "other/sitecustomize.py").write_text(f"import sys; sys.path.append({str(project)!r})")
    assert said(project, project / "nets/space.py", on_path=[project / "other"]) == ""


def test_another_module_of_the_same_name_is_not_the_one_beside_the_script(project):
    (project / "other").mkdir()
    (project / "other/helper.py").touch()
    assert "which is beside the script" in said(project, project / "nets/space.py", on_path=[project / "other"])
