"""The section on filters: plots of the best trial's network, and a line where there is nothing to plot."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from raypipe.core.parameters import parse_config
from raypipe.data.montage import project_to_scalp
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.members import MergedNetworks
from raypipe.reporting.sections import filters
from raypipe.reporting.sections.filters import MAX_WINDOWS, MIN_ELECTRODES, filters_section
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial
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
    assert html.count("<svg") == 2 and "scalp maps, kernels and spectra" in html
    number = full_run.run.ranked()[0].number
    subjects = set(full_run.windows.subjects) - set(full_run.run.folds.held_out)
    seen = min(MAX_WINDOWS, int(np.isin(full_run.windows.subjects, list(subjects)).sum()))
    assert (
        f"filters of trial {number}, the best so far (network of fold 0)" in html
        and f"{seen} windows of the search" in html
    )
    assert "could not" not in html and 'class="note"' not in html


def test_held_out_windows_are_not_read(full_run, monkeypatch):
    index = []
    gather = type(full_run.windows).gather
    monkeypatch.setattr(type(full_run.windows), "gather", lambda self, i: index.extend(i) or gather(self, i))
    filters_section(full_run.run)
    assert index and not set(full_run.windows.subjects[index]) & set(full_run.run.folds.held_out)


def test_windows_of_a_class_that_comes_in_turn_are_among_those_that_are_read(tmp_path):
    """Of many windows, evenly spaced ones would all be of one class."""
    toy, index = ToyWindows(subjects=6, each=51, classes=True), []
    run = make_run(tmp_path / "run", toy)
    search = run.folds.search_index(toy.subjects)
    assert len(search) == 2 * MAX_WINDOWS - 1
    toy.targets[search] = np.arange(len(search)) % 2
    gather = toy.gather
    toy.gather = lambda some: index.extend(some) or gather(some)
    assert len(filters._sample_windows(run, toy, "window")) == MAX_WINDOWS
    assert 40 < toy.targets[index].sum() < MAX_WINDOWS - 40 and index == sorted(set(index))
    first = index.copy()
    index.clear()
    filters._sample_windows(run, toy, "window")
    assert index == first, "drawn by seed"


def test_without_positions_there_are_spectra(values):
    html = filters_section(values.run)
    assert html.count("<svg") == 2 and "scalp maps, kernels" not in html
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
    best, second = (result.number for result in copy.ranked()[:2])
    copy.add_trial(best, tiny(model__name="vit"))
    edit_record(copy.folder, f"trials/{best:04d}/result.json", {"files": {}})
    assert f"filters of trial {second}, the best so far" in filters_section(copy)
    alone = replace(Ensemble.load(copy), members=[Member(best)], weights=np.ones(1))
    assert "No filters over the channels: vit does not start with any." in filters_section(copy, alone)


def test_filters_are_those_of_what_is_shipped(full_run):
    run = full_run.run
    best, second, third = (result.number for result in run.ranked()[:3])
    fitted = replace(Ensemble.load(full_run.run), members=[Member(best), Member(second), Member(third)])
    light = replace(fitted, weights=np.array([0.2, 0.7, 0.1]))
    assert f"filters of trial {second}, a member of the ensemble with weight 0.70 (" in filters_section(run, light)
    merged = MergedNetworks([Member(third)], [run.weights(third, 0)])
    assert "filters of the network of mean weights (" in filters_section(run, replace(light, merged=merged))
    student = replace(light, merged=replace(merged, distilled=True))
    assert "filters of the distilled network (" in filters_section(run, student)


CLOSED = {
    "band power": {"model/name": "linear", "model/bands": "even", "model/n_bands": 8, "model/high": 20.0},
    "time courses": {"model/name": "linear", "model/predictors": "time-courses", "model/components": 4},
    "covariance": {"model/name": "covariance", "model/components": 6, "model/scale": "window"},
    "prototypes": {"model/name": "covariance", "model/prototypes": 1},
    "embedded": {"model/name": "covariance", "model/components": 4, "model/order": 2},
}


@pytest.fixture
def closed(copy, full_run):
    """The numbers that trials of models in closed form have, and a maker of ensembles of some, by their weights."""
    numbers = {name: number for number, name in enumerate(CLOSED, 20)}

    def ensemble(**weights):
        names = [name.replace("_", " ") for name in weights]
        for name in set(names) & set(CLOSED):
            copy.add_trial(numbers[name], parse_config(CLOSED[name]))
            run_trial(copy, full_run.windows, numbers[name])
        members = [Member(numbers.get(name, 0)) for name in names]
        return replace(Ensemble.load(copy), members=members, weights=np.array(list(weights.values())))

    return numbers, ensemble


def test_members_in_closed_form_have_activation_patterns(copy, closed, monkeypatch):
    numbers, ensemble = closed
    shipped, index = ensemble(band_power=0.2, time_courses=0.5, covariance=0.3), []
    gather = WindowStore.gather
    monkeypatch.setattr(WindowStore, "gather", lambda self, i: index.extend(i) or gather(self, i))
    html = filters_section(copy, shipped)
    assert index and not set(WindowStore(copy.info.data).subjects[index]) & set(copy.folds.held_out)
    assert html.count("<svg") == 4 and "could not" not in html and 'class="note"' not in html
    places = [html.index(f"Trial {numbers[name]}, a member") for name in ("time courses", "covariance", "band power")]
    assert places == sorted(places), "the largest weight first"
    assert "log power at each channel changes with the predicted value" in html
    assert "relative to the window&#39;s power, changes (as 6 spatial components explain it)" in html
    assert "amplitude at each channel changes (as 4 spatial components explain it)" in html
    assert "Shown are the 6 of 8 bands with the largest changes." in html


def test_a_network_and_models_in_closed_form_are_shown_side_by_side(copy, closed):
    numbers, ensemble = closed
    html = filters_section(copy, ensemble(network=0.6, band_power=0.3, prototypes=0.1))
    assert (
        html.count("<svg") == 4 and "trial 0, a member" in html and f"Trial {numbers['band power']}, a member" in html
    )
    assert "as 3 xDAWN filters explain it; their covariances with mean responses" in html


def test_an_embedding_says_why_it_has_no_map_and_the_next_one_is_shown(copy, closed):
    numbers, ensemble = closed
    reason = f"No activation patterns of trial {numbers['embedded']}, a member of the ensemble with weight"
    shipped = ensemble(embedded=1.0)
    alone = filters_section(copy, shipped)
    assert f"{reason} 1.00: most of its features are covariances of delayed copies" in alone and "<svg" not in alone
    members = [*shipped.members, *ensemble(covariance=1.0).members]
    both = filters_section(copy, replace(shipped, members=members, weights=np.array([0.9, 0.1])))
    assert f"{reason} 0.90: most" in both and both.count("<svg") == 1


def test_patterns_without_weights_windows_or_positions_are_named(copy, closed, monkeypatch):
    numbers, ensemble = closed
    shipped = ensemble(covariance=1.0)
    monkeypatch.setattr(filters, "project_to_scalp", lambda names: project_to_scalp(names[:5]))
    assert "No scalp maps: of 19 channels, the positions of 5 are known" in filters_section(copy, shipped)
    monkeypatch.undo()
    (copy.local / f"trials/{numbers['covariance']:04d}/fold-0.safetensors").unlink()
    assert "its weights are missing or damaged" in filters_section(copy, shipped)
    elsewhere = pointed(copy, data="/nowhere")
    assert "Activation patterns are not shown: the windows of this run cannot be" in filters_section(elsewhere, shipped)
