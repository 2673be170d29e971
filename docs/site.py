"""Write the pages of the documentation's site, which mkdocs then builds: `make docs`, or `python docs/site.py OUT`.

The pages lie as in the repository, so that their links hold. One page is made: the reference of the public names.
"""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OTHERS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
"""Files of the root that are pages, or that pages have links to."""
REFERENCE = "docs/reference.md"


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


def main() -> None:
    """Write the pages to the folder given as the first argument, in place of those that it has."""
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    for name in files():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, out / name)
    (out / REFERENCE).write_text(reference())


if __name__ == "__main__":
    main()
