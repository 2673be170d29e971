"""Run the notebooks of `examples/`, for the documentation's site: `python docs/notebooks.py OUT`.

Each runs in a folder of its own and is written with its outputs. One that fails ends the command.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS_PER_CELL = 600


def run(path: Path, out: Path) -> None:
    """Run a notebook and write it, with its outputs, to a folder."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources=resources).execute()
    nbformat.write(notebook, out / path.name)


def main() -> None:
    """Run all notebooks, and write them to the folder given as the first argument."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        run(path, out)


if __name__ == "__main__":
    main()
