"""What the README and the Makefile say can be typed: every command parses, every Python block compiles."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from raypipe import cli
from raypipe.space import SearchSpace

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(
    set(re.findall(r"^raypipe .*$", README, re.MULTILINE))
    | {"raypipe " + c for c in re.findall(r"^\t\$\(BIN\)/raypipe (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)}
)


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 12
    assert len(python_blocks()) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    words = shlex.split(command.replace("$(DEMO)", "demo"))[1:]
    verbs = typer.main.get_command(cli.app)
    with verbs.make_context("raypipe", list(words)) as context:
        name, verb, rest = verbs.resolve_command(context, list(words))
        verb.make_context(name, rest, parent=context)
    for word in words:
        if word.startswith("search_spaces/"):
            assert (ROOT / word).is_file()


def test_the_search_space_of_the_readme_is_valid():
    (source,) = (block for block in python_blocks() if "START" in block)
    SearchSpace(source, "README").check()


def test_the_python_of_the_readme_compiles_and_names_what_exists():
    (source,) = (block for block in python_blocks() if "import" in block)
    compile(source, "README", "exec")
    scope: dict[str, object] = {}
    exec(next(line for line in source.splitlines() if line.startswith("from raypipe")), scope)
    assert all(callable(scope[name]) for name in ("prepare", "sweep", "load_ensemble"))


def test_every_room_is_on_the_map():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {p.stem for p in (ROOT / "raypipe").glob("*.py")} - {"__init__", "__main__"}
    assert sorted(room for room in rooms if f"`{room}`" not in page) == []
