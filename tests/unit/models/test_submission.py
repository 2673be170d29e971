"""Files that a submission contains."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from raypipe.models import submission
from raypipe.packaging.submission import CODE

FOLDER = Path(submission.__file__).parent


def test_all_networks_are_shipped() -> None:
    """A new file of `models` must be added to the list, unless only raypipe itself uses it."""
    ours = {"__init__.py", "from_config.py", "own.py", "braindecode_weights.py", "window_checks.py"}
    assert sorted(CODE) == sorted(path.name for path in FOLDER.glob("*.py") if path.name not in ours)


@pytest.mark.parametrize("name", CODE)
def test_files_of_a_submission_import_only_torch_and_each_other(name: str) -> None:
    tree = ast.parse((FOLDER / name).read_text(encoding="utf-8"))
    branches = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "__package__"]
    for branch in branches:  # imports that are used within raypipe only
        branch.body = [ast.Pass()]
    nodes = list(ast.walk(tree))
    roots = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    roots |= {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    shipped = {"torch"} | {Path(other).stem for other in CODE}
    assert (roots & shipped or name in ("bands.py", "sizes.py")) and roots <= sys.stdlib_module_names | shipped
