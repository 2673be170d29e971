"""Ensembles of trials that were trained on different stores of the same windows."""

from __future__ import annotations

import re

import numpy as np
import pytest

from raypipe.core.errors import UserError
from raypipe.core.parameters import parse_config
from raypipe.data.window_cache import open_windows
from raypipe.ensembles.fit import fit_ensemble
from raypipe.ensembles.fitted import Ensemble
from raypipe.ensembles.inference import predict_one_per_fold
from raypipe.ensembles.members import build_module, read_members
from raypipe.ensembles.soup import SoupMaker, incompatibility
from raypipe.reporting.report import render_report
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial
from tests.support.stores import Subset, write_two_stores
from tests.support.toys import ToyWindows, make_run, tiny, write_store


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunStore:
    """Return a run with three trials on each of two stores: two of one network and seed, and a linear model."""
    root = tmp_path_factory.mktemp("stores")
    both = open_windows(write_two_stores(root, subjects=20, each=6))
    made = make_run(root / "run", both, data=both.where)
    for number in range(6):
        store = both.names[number % 2]
        rate = 10.0 ** -(2 + number // 2)
        network = tiny(data__store=store, optim__lr=rate, epochs=2)
        made.add_trial(number, parse_config({"model/name": "linear", "data/store": store}) if number > 3 else network)
        run_trial(made, both, number)
    return RunStore.open(made.where)


def store_of(run: RunStore, member: Member) -> str:
    return run.config(member.trial).data.store


@pytest.mark.parametrize("method", ["equal", "auto", "greedy", "confidence"])
def test_members_predict_held_out_people_from_their_own_store(run, method):
    ensemble = fit_ensemble(run, method=method)
    both, index = open_windows(run.info.data), ensemble.held_out.windows
    for member, predicted in zip(ensemble.members, ensemble.held_out.trials, strict=True):
        own = both.of(store_of(run, member))
        alone = predict_one_per_fold(build_module(*read_members(run, own, [member], [1.0])), own, index, None)
        np.testing.assert_allclose(predicted, alone, rtol=1e-5, atol=1e-6)
    if method == "equal":
        assert {store_of(run, member) for member in ensemble.members} == {"broad", "low"}


def test_a_soup_is_of_one_store(run):
    soup = fit_ensemble(run, method="uniform-soup")
    assert soup.merged is not None and len(soup.merged.members) == 2
    assert len({store_of(run, member) for member in soup.merged.members}) == 1


def test_members_of_different_stores_are_no_soup(run):
    both = open_windows(run.info.data)
    assert incompatibility(run, 0, 1) == "they are trained on different stores, broad and low"
    with pytest.raises(UserError, match="no soup of trials 0 and 1: they are trained on different stores"):
        SoupMaker(run, both, None, [Member(0), Member(1)])


def test_a_student_learns_from_the_store_of_its_configuration(run):
    ensemble = fit_ensemble(run, method="equal", distilled=True)
    assert ensemble.distilled and np.isfinite(ensemble.held_out.predictions).all()


def test_the_report_says_which_store_each_trial_used_and_which_won(run):
    ensemble = fit_ensemble(run, method="equal")
    ensemble.save()
    best = run.ranked()[0].number
    page = render_report(run)
    assert f"The best trial, {best}, used store {run.config(best).data.store}." in page
    section = re.search(r"<h2[^>]*>Stores.*?</table>", page, re.DOTALL)
    assert section is not None
    assert "3 channels x 64 samples at 50 Hz" in section[0] and "2 channels x 32 samples at 25 Hz" in section[0]
    assert "--data broad=STORE-broad,low=STORE-low" in page
    assert Ensemble.load(run).members == ensemble.members


def test_the_report_says_what_is_left_out_everywhere(tmp_path):
    subjects = [f"s{n:02d}" for n in range(8)]
    one = write_store(tmp_path / "one", Subset(subjects[1:]))
    both = open_windows({"one": one, "all": write_store(tmp_path / "all", ToyWindows())})
    run = make_run(tmp_path / "run", both, data=both.where)
    assert "Left out everywhere, since not all stores have them: windows 8 of store all." in render_report(run)


def test_the_report_of_stores_without_their_windows_is_written(tmp_path):
    stores = {name: write_store(tmp_path / name, ToyWindows()) for name in ("one", "other")}
    both = open_windows(stores)
    run = make_run(tmp_path / "run", both, data=both.where)
    (tmp_path / "other" / "windows.csv").unlink()
    assert "Stores" in render_report(run)


def test_stores_under_other_names_are_refused(run):
    places = dict(part.split("=") for part in run.info.data.split(","))
    with pytest.raises(UserError, match="not the windows that"):
        fit_ensemble(run, windows=open_windows(dict(reversed(places.items()))))
