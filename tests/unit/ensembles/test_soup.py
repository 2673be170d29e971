from __future__ import annotations

import html
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raypipe.core.errors import UserError
from raypipe.core.metrics import score
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.oof import MemberPredictions, read_oof_predictions
from raypipe.ensembles.soup import (
    SoupMaker,
    average,
    choose_greedily,
    compatible_members,
    incompatibility,
    make_soup,
    require_compatible,
    update_batchnorm,
)
from raypipe.models.from_config import build_model
from raypipe.packaging.bundle import export_bundle, load_ensemble
from raypipe.packaging.submission import export_submission
from raypipe.reporting.report import write_report
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial
from tests.support.faults import flip
from tests.support.toys import ToyWindows, tiny, write_store
from tests.unit.conftest import Finished, finish


@pytest.fixture(scope="module")
def siblings(tmp_path_factory) -> Finished:
    """Three trials that start alike, and one from another seed."""
    root = tmp_path_factory.mktemp("siblings")
    made = finish(root, write_store(root / "store", ToyWindows(subjects=20, each=6)), epochs=2, seeds=(5, 5, 5))
    made.run.add_trial(4, tiny(epochs=1, batch_size=16, seed=6))
    run_trial(made.run, made.windows, 4)
    return made


def maker_of(made: Finished, trials: list[int]) -> SoupMaker:
    some = [Member(number) for number in trials]
    members = read_oof_predictions(made.run, some, made.windows.subjects, made.windows.targets)
    return SoupMaker(made.run, made.windows, members, some)


def test_integer_tensors_are_copied_and_not_averaged():
    one, other = ({"w": torch.full((2,), v), "n": torch.tensor(c)} for v, c in ((1.0, 3), (4.0, 6)))
    mean = average([one, other])
    torch.testing.assert_close(mean["w"], torch.full((2,), 2.5))
    assert mean["n"] == 3 and mean["n"].dtype == torch.int64
    mean["n"] += 1
    assert one["n"] == 3


def test_batchnorm_statistics_of_a_soup_are_wrong_until_recomputed():
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(2, 4, 5), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5)).eval()

    torch.manual_seed(0)
    x_BCT = torch.randn(64, 2, 50)
    one, other = network(), network()  # filters that differ cancel in their mean: it varies less than either
    states = []
    for each in (one, other):
        assert update_batchnorm(each, [x_BCT])
        states.append(each.state_dict())
    soup = network()
    soup.load_state_dict(average(states))
    stale = float(soup(x_BCT).std().detach())
    assert update_batchnorm(soup, x_BCT.split(16))
    fresh = float(soup(x_BCT).std().detach())
    assert stale < 0.85 and fresh == pytest.approx(1.0, abs=0.02)
    assert soup[1].momentum == 0.3 and not soup[1].training and not soup[2].training
    assert soup[1].num_batches_tracked == 4  # the cumulative average of four batches
    values = soup[0](x_BCT).transpose(0, 1).flatten(1)
    torch.testing.assert_close(soup[1].running_mean, values.mean(1))
    assert not update_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), [])


def test_a_soups_statistics_are_those_of_its_fold_s_training_windows(siblings):
    run, windows = siblings.run, siblings.windows
    soup = maker_of(siblings, [0, 1, 2]).soup((0, 1, 2))
    for fold, tensors in enumerate(soup.folds):
        plain = average([run.weights(number, fold) for number in (0, 1, 2)])
        assert not torch.equal(tensors["model.batch_norm.running_var"], plain["model.batch_norm.running_var"])
        torch.testing.assert_close(tensors["model.pointwise.weight"], plain["model.pointwise.weight"])
        network = build_model(run.config(0).model, n_channels=3, n_times=64, n_outputs=1, sfreq=50.0).eval()
        network.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
        train = run.folds.split(windows.subjects, fold)[0]
        with torch.no_grad():
            seen_BFT = network.stem(network.prepare(torch.from_numpy(windows.gather(train))), prepared=True)
        torch.testing.assert_close(
            tensors["model.batch_norm.running_mean"], seen_BFT.mean((0, 2)), atol=1e-5, rtol=1e-4
        )
        assert tensors["model.batch_norm.num_batches_tracked"].dtype == torch.int64


def test_without_new_statistics_a_soup_predicts_differently(siblings, monkeypatch):
    fresh = maker_of(siblings, [0, 1, 2]).predict((0, 1, 2))
    monkeypatch.setattr("raypipe.ensembles.soup.update_batchnorm", lambda network, batches: False)
    stale = maker_of(siblings, [0, 1, 2]).predict((0, 1, 2))
    assert np.abs(fresh - stale).max() > 1e-3


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 5), st.sampled_from(["nrmse", "auc"]), st.floats(0.0, 2.0))
def test_a_greedy_soup_never_scores_below_its_best_ingredient(seed, n, metric, spoilt):
    rng = np.random.default_rng(seed)
    classes = metric == "auc"
    y = rng.integers(0, 2, 60) if classes else rng.normal(size=60)
    values_MN = y + rng.normal(size=(n, 60))
    answers = np.stack([1 - values_MN, values_MN], axis=2) if classes else values_MN[:, :, None]
    kind = "classification" if classes else "regression"
    subjects, zeros = np.repeat(np.arange(20), 3).astype(str), np.zeros(60, np.int64)
    members = MemberPredictions(
        [f"trial {k}" for k in range(n)], answers, y, subjects, zeros, np.arange(60), metric, kind
    )

    def soup(places):  # averaged weights do better than the mean of answers, or far worse
        rng = np.random.default_rng([seed, *places])
        return answers[list(places)].mean(0) + spoilt * rng.normal(size=answers.shape[1:])

    inside = rng.random(60) < 0.8
    places = choose_greedily(members, soup, inside)
    found = (answers[places[0]] if len(places) == 1 else soup(places))[inside]
    singles = [score(metric, y[inside], each[inside]) for each in answers]
    if np.isfinite(singles).all():
        best = max(singles) if classes else min(singles)
        assert score(metric, y[inside], found) >= best if classes else score(metric, y[inside], found) <= best


def test_the_greedy_soup_of_a_run_is_no_worse_than_any_trial_out_of_fold(siblings):
    maker = maker_of(siblings, [0, 1, 2])
    made = make_soup(maker, "soup")
    found = score("nrmse", maker.predictions.targets, made.oof)
    assert found <= maker.predictions.scores().min()
    assert np.isfinite(made.by_other_half).all() and {member.trial for member in made.networks.members} <= {0, 1, 2}
    uniform = make_soup(maker, "uniform-soup")
    assert uniform.networks.members == [Member(0), Member(1), Member(2)]
    np.testing.assert_array_equal(uniform.oof, uniform.by_other_half)  # nothing was chosen


def test_only_trials_that_started_alike_are_averaged(siblings, values, tmp_path):
    run = siblings.run
    require_compatible(run, [Member(0), Member(1), Member(2)])
    with pytest.raises(
        UserError, match=r"no soup of trials 0 and 4: they have different initial weights, seeds 5 and 6"
    ):
        maker_of(siblings, [0, 1, 4])
    assert compatible_members(run, [Member(4), Member(2), Member(0)]) == [Member(2), Member(0)]
    ranked = ", ".join(str(result.number) for result in values.run.ranked())
    with pytest.raises(UserError, match=f"no two of the trials {ranked} can be averaged"):
        values.ensemble(method="soup")
    with pytest.raises(UserError, match="a soup needs two"):
        values.ensemble(method="uniform-soup", top=1)
    copy = RunStore.open(shutil.copytree(run.local, tmp_path / "run"))
    copy.add_trial(5, tiny(model__heads=1, seed=5))  # the same weights, used otherwise
    assert incompatibility(copy, 0, 5) == "they are different networks, model/heads 2 and 1"
    copy.add_trial(6, tiny(model__dropout=0.5, seed=5))
    assert incompatibility(copy, 0, 6) == "the initial weights of trial 6 are not recorded"


@pytest.mark.parametrize("method", ["uniform-soup", "soup"])
def test_a_soup_is_shipped_as_one_network_per_fold(siblings, tmp_path, method):
    run, windows = RunStore.open(shutil.copytree(siblings.run.local, tmp_path / "run")), siblings.windows
    made = fit_ensemble(run, windows=windows, method=method)
    notes = " ".join(made.notes)
    assert 4 not in made.trials and "Trial 4 was not tried: not the same network" in notes
    assert "A soup has no nested score" in notes
    assert made.table["nested"].isna().to_dict() == {
        "ensemble": True,
        "equal weights": False,
        "best single trial": False,
        "ridge on band power": False,
        "training mean": False,
    }
    made.save()
    loaded = Ensemble.load(run)
    assert loaded.merged is not None and loaded.merged.members == made.members
    bundle = load_ensemble(export_bundle(run, loaded, tmp_path / "bundle", windows=windows))
    assert len(bundle.module.members) == run.folds.n_folds
    some = made.held_out.windows
    np.testing.assert_allclose(bundle.predict(windows.gather(some)), made.held_out.predictions, atol=1e-5)
    assert f"the mean weights of {len(made.trials)} trial(s)" in (tmp_path / "bundle/README.md").read_text()
    assert export_submission({1: loaded}, tmp_path / "s.zip", windows={1: windows}).is_file()
    assert "the mean weights of these members" in html.unescape(write_report(loaded.run).read_text())
    flip(tmp_path / "run/ensemble/soup-fold-1.safetensors")
    with pytest.raises(UserError, match=r"soup-fold-1.*checksum.*fit the ensemble again"):
        Ensemble.load(run)


def test_the_table_of_all_methods_has_the_soups_or_says_why_not(siblings, values):
    table = fit_ensemble(siblings.run, windows=siblings.windows, method="all").table
    assert {"soup", "uniform-soup"} <= set(table.index)
    without = values.ensemble(method="all")
    assert "soup" not in without.table.index and "seeds" in without.excluded["soup"]
