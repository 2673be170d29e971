"""What the README and the Makefile say can be typed: every command parses, every Python block compiles."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from raypipe.cli import app
from raypipe.core.config import parameter_names
from raypipe.core.search_space import SearchSpace

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {line for text in (README, *DOCS) for line in re.findall(r"^raypipe .*$", text, re.MULTILINE)}
    | {"raypipe " + c for c in re.findall(r"^\t\$\(BIN\)/raypipe (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)}
)


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 12
    assert len(python_blocks()) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    words = shlex.split(command.replace("$(DEMO)", "demo"), comments=True)[1:]
    verbs = typer.main.get_command(app.app)
    with verbs.make_context("raypipe", list(words)) as context:
        name, verb, rest = verbs.resolve_command(context, list(words))
        verb.make_context(name, rest, parent=context)
    for word in words:
        if word.startswith("search_spaces/"):
            assert (ROOT / word).is_file()


SPACES = [
    block for text in DOCS for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def space" in block
]


@pytest.mark.parametrize("source", SPACES, ids=lambda source: source.splitlines()[0])
def test_the_search_spaces_of_the_docs_are_valid(source):
    SearchSpace(source, "docs").check()


def test_the_search_space_of_the_readme_is_valid():
    (source,) = (block for block in python_blocks() if "START" in block)
    SearchSpace(source, "README").check()


def test_the_python_of_the_readme_compiles_and_names_what_exists():
    (source,) = (block for block in python_blocks() if "import" in block)
    compile(source, "README", "exec")
    scope: dict[str, object] = {}
    exec(next(line for line in source.splitlines() if line.startswith("from raypipe")), scope)
    assert all(callable(scope[name]) for name in ("prepare", "sweep", "load_ensemble"))


FAULTS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/faults.md").read_text().splitlines()
    if line.startswith("| ") and "`tests/" in line
]


@pytest.mark.parametrize("fault", FAULTS, ids=[row[0] for row in FAULTS])
def test_every_test_that_the_table_of_faults_names_is_there(fault):
    assert len(fault) == 3
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", fault[2])
    assert len(named) == fault[2].count("::") > 0
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(), f"{path} has no {test}"


def test_every_fault_has_a_test():
    rows = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) - len(FAULTS) == sum(line.startswith("| what can fail") for line in rows)
    assert len(FAULTS) > 20


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_parameters_is_that_of_the_program():
    text = (ROOT / "docs/search-spaces.md").read_text()
    assert script("parameters").page(text) == text, "run: python docs/parameters.py"
    rows = re.findall(r"^\| `([\w/]+)` \| `[^`]+` \| \S.* \| \S.* \|$", text, re.MULTILINE)
    assert rows == parameter_names()


def test_the_reference_has_every_module_and_the_public_names(tmp_path, monkeypatch):
    api = script("api")
    assert {"raypipe.training.sam", "raypipe.models.conformer", "raypipe.cli.inspect"} <= set(api.modules())
    monkeypatch.setattr("sys.argv", ["api.py", str(tmp_path), "raypipe", "raypipe.training.sam"])
    api.main()
    first, sam = (tmp_path / "raypipe.html").read_text(), (tmp_path / "raypipe/training/sam.html").read_text()
    assert "load_ensemble" in first
    assert "Foret" in sam and "<h6" in sam  # numpydoc's sections as headings


def test_every_package_is_on_the_map():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    packages = {path.parent.name for path in (ROOT / "raypipe").glob("*/__init__.py")}
    assert len(packages) > 10
    assert sorted(package for package in packages if f"  {package}/ " not in page) == []


def test_unit_tests_mirror_the_packages():
    packages = {path.parent.name for path in (ROOT / "raypipe").glob("*/__init__.py")}
    assert {path.parent.name for path in (ROOT / "tests/unit").glob("*/__init__.py")} == packages
