"""The section on filters: plots of the best trial's network, and a line where there is nothing to plot."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from raypipe.data.montage import project_to_scalp
from raypipe.reporting.sections import filters
from raypipe.reporting.sections.filters import MAX_WINDOWS, MIN_ELECTRODES, filters_section
from raypipe.storage.run_store import RunStore
from tests.support.records import edit_record
from tests.support.toys import ToyWindows, make_run, tiny
from tests.unit.conftest import TEN_TWENTY


@pytest.fixture
def copy(full_run, tmp_path):
    """The run with every section, to be damaged."""
    shutil.copytree(full_run.run.local, tmp_path / "run")
    return RunStore.open(tmp_path / "run")


def pointed(run, **changes):
    edit_record(run.folder, "run.json", changes)
    return RunStore.open(run.where)


def test_the_section_has_maps_and_spectra(full_run):
    html = filters_section(full_run.run)
    assert html.count("<img") == 2 and "scalp maps, kernels and spectra" in html
    number = full_run.run.ranked()[0].number
    subjects = set(full_run.windows.subjects) - set(full_run.run.folds.held_out)
    seen = min(MAX_WINDOWS, int(np.isin(full_run.windows.subjects, list(subjects)).sum()))
    assert f"filters of trial {number} (network of fold 0)" in html and f"{seen} windows of the search" in html
    assert "could not" not in html and 'class="note"' not in html


def test_held_out_windows_are_not_read(full_run, monkeypatch):
    index = []
    gather = type(full_run.windows).gather
    monkeypatch.setattr(type(full_run.windows), "gather", lambda self, i: index.extend(i) or gather(self, i))
    filters_section(full_run.run)
    assert index and not set(full_run.windows.subjects[index]) & set(full_run.run.folds.held_out)


def test_without_positions_there_are_spectra(values):
    html = filters_section(values.run)
    assert html.count("<img") == 2 and "scalp maps, kernels" not in html
    assert f"of 3 channels, the positions of 3 are known by name ({MIN_ELECTRODES} are needed)" in html


def test_some_positions_are_enough(full_run, monkeypatch):
    monkeypatch.setattr(
        filters, "project_to_scalp", lambda names: project_to_scalp([name if name != "Cz" else "X" for name in names])
    )
    assert f"The maps show the {len(TEN_TWENTY) - 1} of {len(TEN_TWENTY)} channels" in filters_section(full_run.run)


def test_missing_windows_and_weights_are_named(copy):
    assert "cannot be opened here" in filters_section(pointed(copy, data="/nowhere"))
    assert "behind a URI" in filters_section(pointed(copy, data="s3://bucket/store"))
    (copy.local / f"trials/{copy.ranked()[0].number:04d}/fold-0.safetensors").unlink()
    assert "missing or damaged" in filters_section(copy)


def test_other_windows_are_not_taken(copy):
    assert "have changed since the run was made" in filters_section(pointed(copy, data_hash="other"))


def test_a_run_without_a_trained_network_has_no_section(tmp_path):
    assert filters_section(make_run(tmp_path / "run", ToyWindows())) == ""


def test_an_error_leaves_a_line_in_the_report(full_run, monkeypatch):
    monkeypatch.setattr(filters, "activation_patterns", lambda *_: 1 / 0)
    html = filters_section(full_run.run)
    assert re.search(r"<h2[^>]*>Filters</h2>\s*<p class=\"note\">.*could not be shown \(ZeroDivisionError\)", html)


def test_a_transformer_over_patches_has_none(copy):
    best = copy.ranked()[0].number
    copy.add_trial(best, tiny(model__name="vit"))
    edit_record(copy.folder, f"trials/{best:04d}/result.json", {"files": {}})
    assert "vit, does not start with filters over the channels" in filters_section(copy)
