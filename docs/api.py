"""Render the docstrings of all modules: `make docs`, or `python docs/api.py OUT [MODULE...]`."""

from __future__ import annotations

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import raypipe


def modules() -> list[str]:
    """Return the names of the package and of all modules in it."""
    inner = pkgutil.walk_packages(raypipe.__path__, "raypipe.")
    return ["raypipe", *(module.name for module in inner if not module.name.endswith("__main__"))]


def main() -> None:
    """Write the pages to the folder given as the first argument."""
    out, *chosen = sys.argv[1:]
    for name in raypipe.__all__:  # they are loaded when they are first used, which pdoc does not do
        setattr(raypipe, name, getattr(raypipe, name))
    warnings.simplefilter("ignore")  # about names that only a type checker imports
    pdoc.render.configure(docformat="numpy", show_source=False)
    pdoc.pdoc(*(chosen or modules()), output_directory=Path(out))


if __name__ == "__main__":
    main()
