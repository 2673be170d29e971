"""Write the pages of the documentation's site, which mkdocs then builds: `make docs`.

``python docs/site.py OUT NOTEBOOKS`` takes the notebooks that `docs/notebooks.py` has run. The pages lie as in the
repository, so that their links hold. Made are the reference of the public names, and a page for each notebook.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OTHERS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
"""Files of the root that are pages, or that pages have links to."""
REFERENCE = "docs/reference.md"
_NOTEBOOK = re.compile(r"(\bexamples/\w+)\.ipynb\b")


def files() -> list[str]:
    """Return the paths of the files of the repository that the site has."""
    found = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/pictures").iterdir(), ROOT / "benchmarks/RESULTS.md"]
    return [*OTHERS, *sorted(path.relative_to(ROOT).as_posix() for path in found)]


def public_names() -> dict[str, str]:
    """Return the modules of the public names, read from the source of `raypipe/api.py`: the site needs no torch."""
    values: dict[str, object] = {}
    for file in ("raypipe/__init__.py", "raypipe/api.py"):
        for node in ast.parse((ROOT / file).read_text()).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and target.id in ("__all__", "MODULES"):
                values.setdefault(target.id, ast.literal_eval(node.value))
    return {name: values["MODULES"].get(name, "raypipe.api") for name in values["__all__"]}


def reference() -> str:
    """Return the page with the docstrings of all public names."""
    heads = "\n\n".join(f"::: {module}.{name}" for name, module in public_names().items())
    return f"# Reference\n\nThe public names of `raypipe`; [python.md](python.md) shows how they are used.\n\n{heads}\n"


def box_outputs(notebook: Any) -> None:
    """Put each HTML output of a notebook in a box that scrolls, so that a wide table does not widen the page."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html")
            if html is not None:
                output["data"]["text/html"] = f'<div style="overflow-x: auto">\n{html}\n</div>'


def write_notebooks(folder: Path, out: Path) -> None:
    """Write each notebook of a folder as a page of ``examples/``, with its outputs and pictures."""
    import nbformat
    from nbconvert import MarkdownExporter  # in the site's environment only

    for path in sorted(folder.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        box_outputs(notebook)
        resources = {"output_files_dir": f"{path.stem}_files"}
        text, resources = MarkdownExporter().from_notebook_node(notebook, resources)
        page = out / "examples" / f"{path.stem}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text)
        for name, content in resources["outputs"].items():
            (page.parent / name).parent.mkdir(exist_ok=True)
            (page.parent / name).write_bytes(content)


def main() -> None:
    """Write the pages to the folder given as the first argument, in place of those that it has."""
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    for name in files():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, out / name)
    for page in out.rglob("*.md"):
        page.write_text(_NOTEBOOK.sub(r"\1.md", page.read_text()))
    (out / REFERENCE).write_text(reference())
    for folder in sys.argv[2:]:
        write_notebooks(Path(folder), out)


if __name__ == "__main__":
    main()
