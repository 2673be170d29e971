"""Render the docstrings of all modules: `make docs`, or `python docs/api.py OUT [MODULE...]`.

`raypipe` itself loads its public names when they are asked for, which pdoc does not do; here they are.
"""

from __future__ import annotations

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import raypipe


def modules() -> list[str]:
    """Names of the package and of all that is in it."""
    inner = pkgutil.walk_packages(raypipe.__path__, "raypipe.")
    return ["raypipe", *(module.name for module in inner if not module.name.endswith("__main__"))]


def main() -> None:
    """Write the pages to the folder that the first argument names."""
    out, *chosen = sys.argv[1:]
    for name in raypipe.__all__:
        setattr(raypipe, name, getattr(raypipe, name))
    warnings.simplefilter("ignore")  # of names that only a type checker imports: they are shown as they are written
    pdoc.render.configure(docformat="numpy", show_source=False)
    pdoc.pdoc(*(chosen or modules()), output_directory=Path(out))


if __name__ == "__main__":
    main()
