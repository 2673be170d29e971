"""What the best network looks for: filters taken from weights, their patterns, and the section that shows them."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch

from raypipe.data.montage import electrode_positions, project_to_scalp
from raypipe.models.conformer import Conformer
from raypipe.models.tcn import Tcn
from raypipe.reporting import filter_patterns as room
from raypipe.reporting.filter_patterns import FEWEST, TITLE, WINDOWS, filters, filters_of, leading, patterns, spectra
from raypipe.storage.files import read_json, write_json
from raypipe.storage.run_store import RunStore
from tests.support.toys import ToyWindows, make_run, tiny
from tests.unit.conftest import TEN_TWENTY


@pytest.fixture
def copy(told, tmp_path):
    """The run with every section, to be damaged."""
    shutil.copytree(told.run.local, tmp_path / "run")
    return RunStore.open(tmp_path / "run")


def pointed(run, **changes):
    write_json(run.folder, "run.json", read_json(run.folder, "run.json") | changes)
    return RunStore.open(run.where)


def test_layers_of_the_conformer_are_one_map():
    torch.manual_seed(0)
    model = Conformer(5, 100, 1, filters=6, heads=2, depth=1, kernel=7, pool=20).double().eval()
    found = filters_of("conformer", dict(model.state_dict()))
    x = torch.randn(2, 5, 100, dtype=torch.float64)
    model.stem.algorithm = "reference"
    with torch.no_grad():
        whole = torch.nn.functional.conv1d(x, torch.from_numpy(found.whole).double())
        differs = model.stem(x) - whole
    assert found.whole.shape == (6, 5, 7) and found.temporal.shape == (6, 7) and found.weight.shape == (6,)
    assert differs.std(-1).max() < 1e-5, "but for a constant, the bias"


def test_layers_of_the_tcn_are_one_map():
    torch.manual_seed(0)
    model = Tcn(5, 60, 1, filters=4, depth=1).eval()
    found = filters_of("tcn", dict(model.state_dict()))
    x = torch.randn(2, 5, 60)
    with torch.no_grad():
        inner = model.temporal(model.spatial(x))[..., 3:-3]
        differs = inner - torch.nn.functional.conv1d(x, torch.from_numpy(found.whole))
    assert differs.std(-1).max() < 1e-5
    assert leading(found.whole)[2] == pytest.approx(1.0)


def test_a_network_without_spatial_filters_has_none():
    assert filters_of("vit", {}) is None


def test_the_pattern_is_the_source_although_the_filter_is_not():
    rng = np.random.default_rng(0)
    source, noise = np.array([1.0, 0.0]), np.array([1.0, 1.0])  # Haufe et al. 2014, figure 1
    x_BCT = np.einsum("c,bt->bct", source, rng.normal(size=(20, 400))) + np.einsum(
        "c,bt->bct", noise, rng.normal(size=(20, 400))
    )
    filter_GCK = np.array([[[1.0], [-1.0]]])  # takes the noise away: both channels weigh alike
    pattern_GCK, sd_G = patterns(x_BCT, filter_GCK)
    assert leading(pattern_GCK)[0][0] == pytest.approx(source, abs=0.03)
    assert sd_G == pytest.approx([1.0], rel=0.03)


def test_patterns_are_the_covariance_of_channels_and_lags_times_the_filter():
    rng = np.random.default_rng(1)
    x_BCT, w_GCK = rng.normal(size=(3, 2, 500)).cumsum(-1) / 10, rng.normal(size=(2, 2, 4))
    pattern_GCK, _ = patterns(x_BCT, w_GCK)
    lagged = np.stack([x_BCT[..., k : 497 + k] for k in range(4)], 2).transpose(0, 3, 1, 2).reshape(-1, 8)
    expected = np.cov(lagged.T, bias=True) @ w_GCK.reshape(2, 8).T
    np.testing.assert_allclose(pattern_GCK.reshape(2, 8), expected.T, rtol=2e-3, atol=1e-3 * np.abs(expected).max())


def test_spectra_peak_at_the_frequency_of_the_kernel():
    time = np.arange(50) / 100
    frequencies, gain = spectra(np.sin(2 * np.pi * np.array([[10.0], [25.0]]) * time), 100.0)
    assert frequencies[gain.argmax(1)] == pytest.approx([10, 25], abs=0.6) and gain.max() == 1.0
    assert frequencies[-1] == 50.0


def test_places_on_the_scalp():
    info, known = project_to_scalp(["EEG Fz-A2", "nothing", "C3", "c3", "O2"])
    assert known == [0, 2, 4] and info.ch_names == ["EEG Fz-A2", "C3", "O2"]
    fz, c3, o2 = (each["loc"][:3] for each in info["chs"])
    assert fz[1] > c3[1] > o2[1] and c3[0] < 0 < o2[0] and abs(fz[0]) < 0.005
    apart = electrode_positions(["Fz", "O2"])
    assert np.linalg.norm(fz - o2) == pytest.approx(np.linalg.norm(apart[0] - apart[1]), rel=0.02)
    assert project_to_scalp(["nothing"]) == (None, []) == project_to_scalp([])
    assert len(project_to_scalp([f"E{k}" for k in range(1, 130)])[1]) == 129


def test_the_section_has_maps_and_spectra(told):
    html = filters(told.run)
    assert html.count("<img") == 2 and "scalp maps, kernels and spectra" in html
    number = told.run.ranked()[0].number
    subjects = set(told.windows.subjects) - set(told.run.folds.held_out)
    seen = min(WINDOWS, int(np.isin(told.windows.subjects, list(subjects)).sum()))
    assert f"filters of trial {number} (network of fold 0)" in html and f"{seen} windows of the search" in html
    assert "could not" not in html and 'class="note"' not in html


def test_held_out_windows_are_not_looked_at(told, monkeypatch):
    index = []
    gather = type(told.windows).gather
    monkeypatch.setattr(type(told.windows), "gather", lambda self, i: index.extend(i) or gather(self, i))
    filters(told.run)
    assert index and not set(told.windows.subjects[index]) & set(told.run.folds.held_out)


def test_without_positions_there_are_spectra(values):
    html = filters(values.run)
    assert html.count("<img") == 2 and "scalp maps, kernels" not in html
    assert f"of 3 channels, the positions of 3 are known by name ({FEWEST} are needed)" in html


def test_some_positions_are_enough(told, monkeypatch):
    monkeypatch.setattr(
        room, "project_to_scalp", lambda names: project_to_scalp([name if name != "Cz" else "X" for name in names])
    )
    assert f"The maps show the {len(TEN_TWENTY) - 1} of {len(TEN_TWENTY)} channels" in filters(told.run)


def test_what_is_lacking_is_said(copy):
    assert "cannot be opened here" in filters(pointed(copy, data="/nowhere"))
    assert "behind a URI" in filters(pointed(copy, data="s3://bucket/store"))
    (copy.local / f"trials/{copy.ranked()[0].number:04d}/fold-0.safetensors").unlink()
    assert "missing or damaged" in filters(copy)


def test_other_windows_are_not_taken(copy):
    assert "have changed since the run was made" in filters(pointed(copy, data_hash="other"))


def test_a_run_without_a_trained_network_has_no_section(tmp_path):
    assert filters(make_run(tmp_path / "run", ToyWindows())) == ""


def test_nothing_that_goes_wrong_costs_the_report(told, monkeypatch):
    monkeypatch.setattr(room, "patterns", lambda *_: 1 / 0)
    assert re.search(rf"<h2[^>]*>{TITLE}</h2>.*could not be shown \(ZeroDivisionError\)", filters(told.run))


def test_a_transformer_over_patches_is_said_to_have_none(copy):
    best = copy.ranked()[0].number
    copy.add_trial(best, tiny(model__name="vit"))
    write_json(copy.folder, f"trials/{best:04d}/result.json",
               read_json(copy.folder, f"trials/{best:04d}/result.json") | {"files": {}})  # fmt: skip
    assert "vit, does not begin with filters over the channels" in filters(copy)
