"""Documents: every command parses, Python uses the public API only, tables are those of the program."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import typer
import yaml

import raypipe
from raypipe.cli import app
from raypipe.core.options import PretrainOptions, SweepOptions
from raypipe.core.own_code import named_files, read_source
from raypipe.core.parameters import parameter_names
from raypipe.core.search_space import SearchSpace
from raypipe.core.shipped import shipped_spaces

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
COMMANDS = sorted(
    {line for text in PAGES.values() for line in re.findall(r"^raypipe .*$", text, re.MULTILINE)}
    | {"raypipe " + c for c in re.findall(r"^\t\$\(BIN\)/raypipe (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)}
    | set(re.findall(r"^\t(raypipe .*)$", (ROOT / "examples/project/Makefile").read_text(), re.MULTILINE))
)
BLOCKS = [
    pytest.param(block, id=f"{name}: {block.splitlines()[0]}")
    for name, text in PAGES.items()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
]


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 30 and len(BLOCKS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    values = {"DEMO": "demo", "TRIALS": "16", "FOLDS": "4"}
    words = shlex.split(re.sub(r"\$\((\w+)\)", lambda m: values.get(m[1], "x.py"), command), comments=True)[1:]
    verbs = typer.main.get_command(app.app)
    with verbs.make_context("raypipe", list(words)) as context:
        name, verb, rest = verbs.resolve_command(context, list(words))
        verb.make_context(name, rest, parent=context)
    for verb, space in itertools.pairwise(words):
        if verb in ("plan", "sweep") and not space.endswith(".py"):
            assert space in shipped_spaces()


def test_the_readme_is_short_and_has_a_row_for_every_verb():
    page = PAGES["README.md"]
    assert len(page.splitlines()) < 150
    rows = "".join(re.findall(r"^\| (`.*?) \| ", page, re.MULTILINE))
    for verb in typer.main.get_command(app.app).commands:
        assert f"`{verb} " in rows or f"`{verb}`" in rows, f"README.md has no row for {verb}"


LINKS = [(name, link) for name, text in PAGES.items() for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text)]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_link_leads_somewhere(page, link):
    assert ((ROOT if page == "README.md" else ROOT / "docs") / link).exists()


@pytest.mark.parametrize("source", BLOCKS)
def test_python_imports_the_public_api_only_and_names_what_exists(source):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert [name.name for name in node.names if name.name.startswith("raypipe")] in ([], ["raypipe"])
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("raypipe"):
            assert node.module in ("raypipe", "raypipe.api")
            assert {name.name for name in node.names} <= set(raypipe.__all__)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "raypipe":
            assert node.attr in raypipe.__all__


@pytest.mark.parametrize("source", [block for block in BLOCKS if "def space" in block.values[0]])
def test_search_spaces_are_valid(source):
    files = {name: read_source(name, ROOT / "examples/own", "docs") for name in named_files(source)}
    SearchSpace(source, "docs", files).check()


@pytest.mark.parametrize("file", sorted((ROOT / "examples/own").glob("*.py")), ids=lambda file: file.name)
def test_the_files_of_a_network_of_ones_own_are_those_of_its_page(file):
    assert f"```python\n{file.read_text()}```" in PAGES["models.md"]


FAULTS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGES["faults.md"].splitlines()
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
    rows = [line for line in PAGES["faults.md"].splitlines() if line.startswith("| ")]
    assert len(rows) - len(FAULTS) == sum(line.startswith("| what can fail") for line in rows)
    assert len(FAULTS) > 20


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["search-spaces.md", "sweeps.md", "pretraining.md"])
def test_tables_are_those_of_the_program(name):
    assert script("parameters").page(name) == PAGES[name], "run: python docs/parameters.py"


def test_tables_have_every_parameter_and_every_option():
    rows = re.findall(r"^\| `([\w/]+)` \| `[^`]+` \| \S.* \| \S.* \|$", PAGES["search-spaces.md"], re.MULTILINE)
    assert list(dict.fromkeys(rows)) == parameter_names()  # models share names of parameters
    for name, options in (("sweeps.md", SweepOptions), ("pretraining.md", PretrainOptions)):
        flags = re.findall(r"^\| `--([\w-]+)`", PAGES[name], re.MULTILINE)
        assert [flag.replace("-", "_") for flag in flags] == list(options.model_fields)


def test_the_python_page_names_every_public_name():
    rows = "".join(re.findall(r"^\| (`.*?) \| ", PAGES["python.md"], re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows)) == set(raypipe.__all__)


def test_the_reference_has_every_module_and_the_public_names(tmp_path, monkeypatch):
    api = script("api")
    assert {"raypipe.training.sam", "raypipe.models.conformer", "raypipe.cli.inspect"} <= set(api.modules())
    monkeypatch.setattr("sys.argv", ["api.py", str(tmp_path), "raypipe", "raypipe.training.sam"])
    api.main()
    first, sam = (tmp_path / "raypipe.html").read_text(), (tmp_path / "raypipe/training/sam.html").read_text()
    assert "load_ensemble" in first
    assert "Foret" in sam and "<h6" in sam  # numpydoc's sections as headings


def test_the_site_has_every_page_and_every_public_name(tmp_path, monkeypatch):
    site = script("site")
    assert site.public_names().keys() == set(raypipe.__all__)
    for name, module in site.public_names().items():
        assert getattr(importlib.import_module(module), name) is getattr(raypipe, name)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/of-before.md").write_text("# A page that was renamed\n")
    monkeypatch.setattr("sys.argv", ["site.py", str(tmp_path)])
    site.main()
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.md")}
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = re.findall(r"'([\w/.-]+\.md)'", str(config["nav"]))
    notebooks = {f"examples/{path.stem}.md" for path in (ROOT / "examples").glob("*.ipynb")}  # `docs/notebooks.py`
    assert notebooks and sorted(listed) == sorted(pages | notebooks) and config["strict"] is True
    for page in pages - {"docs/reference.md"}:
        written, source = ((folder / page).read_text() for folder in (tmp_path, ROOT))
        assert written == re.sub(r"(examples/\w+)\.ipynb", r"\1.md", source)
    assert "::: raypipe.api.sweep\n" in (tmp_path / "docs/reference.md").read_text()


class Exporter:
    """In place of nbconvert's `MarkdownExporter`, which the site's environment alone has: HTML outputs as they are."""

    def from_notebook_node(self, notebook, resources):
        data = [output["data"] for cell in notebook.cells for output in cell.get("outputs", [])]
        return "\n\n".join(each["text/html"] for each in data if "text/html" in each), {"outputs": {}}


def test_wide_outputs_of_notebooks_scroll_in_a_box(tmp_path, monkeypatch):
    shown = [{"text/html": "<pre>as it is\n\nwritten</pre>"}, {"text/plain": "2"}, {"text/html": "<table></table>"}]
    outputs = [nbformat.v4.new_output("display_data", data) for data in shown]
    cells = [nbformat.v4.new_markdown_cell("# Arrays"), nbformat.v4.new_code_cell("show()", outputs=outputs)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "arrays.ipynb")
    monkeypatch.setitem(sys.modules, "nbconvert", SimpleNamespace(MarkdownExporter=Exporter))
    script("site").write_notebooks(tmp_path, tmp_path)
    page = (tmp_path / "examples/arrays.md").read_text()
    boxes = re.findall(r'<div style="overflow-x: auto">\n(.*?)\n</div>', page, re.DOTALL)
    assert boxes == [data["text/html"] for data in shown if "text/html" in data]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_can_be_imported(path):
    importlib.import_module(f"benchmarks.{path.stem}")


def test_every_package_is_on_the_map():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    packages = {path.parent.name for path in (ROOT / "raypipe").glob("*/__init__.py")}
    assert len(packages) > 10
    assert sorted(package for package in packages if f"  {package}/ " not in page) == []


def test_the_map_names_files_that_exist():
    """Paths are below raypipe/, or in the folder of the path before them; a name in capitals stands in such a file."""
    for row in (ROOT / "ARCHITECTURE.md").read_text().split("## Where is")[1].splitlines():
        named = [name for name in re.findall(r"`([\w/.]+)`", row) if name.endswith((".py", "/"))]
        files = [ROOT / "raypipe" / name for name in named if "/" in name]
        folders = [file.parent for file in files] + [ROOT / "raypipe"]
        missing = [
            name for name in named if not any((folder / name).exists() for folder in [ROOT / "raypipe", *folders])
        ]
        assert missing == [], row
        source = "".join(file.read_text() for file in files if file.is_file())
        symbols = re.findall(r"`([A-Z]\w+|[a-z]+_\w+)`", row)
        assert [name for name in symbols if not re.search(rf"\b{name}\b", source)] == [], row


def test_unit_tests_mirror_the_packages():
    packages = {path.parent.name for path in (ROOT / "raypipe").glob("*/__init__.py")}
    assert {path.parent.name for path in (ROOT / "tests/unit").glob("*/__init__.py")} == packages | {"benchmarks"}


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_hooks_are_programs_of_the_environment():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "hooks from elsewhere would have versions of their own"
    pins = (ROOT / "constraints.txt").read_text()
    assert all(f"\n{name}==" in pins for name in ("ruff", "codespell", "pre_commit"))
