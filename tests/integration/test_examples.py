"""The notebooks of examples/ run as they are, each in a kernel and a folder of its own."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.ray

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MARKS = dict.fromkeys(("epochs", "bids_with_labels"), pytest.mark.long)
"""Notebooks that take minutes: their sources have tests of their own (`test_epochs`, `test_table_target`)."""
RUN = [pytest.param(path, marks=MARKS.get(path.stem, ()), id=path.stem) for path in NOTEBOOKS]
SHOWN = {
    "arrays": ["held-out subjects", "are right"],
    "epochs": ["correlation with the response time within a person", "median error"],
    "bids_with_labels": ["held-out subjects", "low  high", "SIM0003"],
}
"""Texts that the outputs of each must have."""


def texts(notebook) -> str:
    """Return all outputs of a notebook as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(each.get("text") or each.get("data", {}).get("text/plain", "") for each in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_names_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
    assert not re.search(r"/(?:home|tmp|root|work|Users)/", path.read_text())
    assert notebook.metadata["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", RUN)
def test_a_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    done = NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()
    shown = texts(done)
    missing = [text for text in SHOWN[path.stem] if text not in shown]
    assert not missing, shown


def test_every_notebook_is_one_of_these():
    assert {path.stem for path in NOTEBOOKS} == set(SHOWN)
