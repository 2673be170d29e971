from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import r2_score, root_mean_squared_error

from raypipe.core.errors import UserError
from raypipe.data.preprocessing import Preprocessing
from raypipe.packaging.challenge_windows import other_cuts
from raypipe.packaging.score import (
    ChallengeScore,
    ScoreReport,
    score_predictions,
    score_submission,
    select_windows,
)
from raypipe.packaging.submission import export_submission

FINITE = st.floats(-3, 3)


@given(
    st.integers(2, 60).flatmap(
        lambda n: st.tuples(arrays(float, n, elements=FINITE), arrays(float, n, elements=FINITE))
    )
)
def test_equal_to_scikit_learn_and_numpy(pair):
    y, p = pair
    if np.ptp(y) < 1e-3:
        return
    found = score_predictions(y, p)
    rmse = root_mean_squared_error(y, p)
    assert found.rmse == pytest.approx(rmse, rel=1e-12, abs=1e-12)
    assert found.nrmse == pytest.approx(rmse / y.std(), rel=1e-12, abs=1e-12)
    assert found.r2 == pytest.approx(r2_score(y, p), rel=1e-12, abs=1e-9)


def test_predictions_that_cannot_be_scored_are_refused():
    with pytest.raises(UserError, match="all 2 windows are the same"):
        score_predictions([1.0, 1.0], [1.0, 2.0])
    with pytest.raises(UserError, match="1 predictions are not finite"):
        score_predictions([1.0, 2.0], [1.0, float("nan")])
    with pytest.raises(ValueError, match="must both be"):
        score_predictions([1.0, 2.0], [[1.0], [2.0]])


def test_the_overall_score_weights_both_challenges():
    one, two = ChallengeScore(0.9, 1, 0, 1, 5, 2), ChallengeScore(1.1, 1, 0, 1, 5, 2)
    assert ScoreReport("x.zip", {1: one}).overall is None
    report = ScoreReport("x.zip", {1: one, 2: two})
    assert report.overall == pytest.approx(0.3 * 0.9 + 0.7 * 1.1, abs=1e-15) and "1.04000" in str(report)


def test_a_submission_scores_as_its_ensemble_on_the_held_out(simulated, four_channels, tmp_path):
    ensemble = simulated.ensemble(top=2)
    path = export_submission({1: ensemble}, tmp_path / "s.zip", windows={1: simulated.windows})
    held = ensemble.held_out
    report = score_submission(path, {"challenge1": simulated.windows.path})
    found = report.scores[1]
    wanted = root_mean_squared_error(held.targets, held.predictions[:, 0]) / held.targets.std()
    assert found.nrmse == pytest.approx(float(wanted), rel=1e-5)
    assert (found.windows, found.subjects) == (len(held.targets), len(set(held.subjects)))
    assert "subjects that the models were trained on are left out" in report.notes[0]
    all_subjects = score_submission(path, {"challenge1": simulated.windows.path}, subjects="all")
    assert all_subjects.scores[1].windows == len(simulated.windows) and "optimistic" in all_subjects.notes[0]
    with pytest.raises(UserError, match="has windows of target 'challenge1', not challenge2"):
        score_submission(path, {"challenge2": simulated.windows.path})
    with pytest.raises(UserError, match="no subject of release R5"):
        score_submission(path, {"challenge1": simulated.windows.path}, release="R5")
    with pytest.raises(UserError, match="no such choice"):
        score_submission(path, {"challenge1": simulated.windows.path}, subjects="al")
    with pytest.raises(UserError, match="not a target of the challenge"):
        score_submission(path, {"chalenge1": simulated.windows.path})


@pytest.mark.parametrize(
    ("plan", "settings", "words"),
    [
        ({"tmin": -0.5}, {}, "its windows begin -0.5 s after the target, those of the scorer 0.5 s"),
        ({"channels": ("E2", "E1", "E3", "Cz")}, {}, "channel 1 of its windows is E2, the scorer's is E1"),
        ({"crop_samples": 100}, {}, "its windows are 4 channels x 100 samples at 100 Hz, those of the scorer 4"),
        ({"preprocessing": Preprocessing(reference="average")}, {}, "its windows were made with --reference average"),
        ({"preprocessing": Preprocessing(band=(8.0, 12.0))}, {}, "its windows were made with --band 8 12"),
        ({"preprocessing": Preprocessing(band=(0.5, 50.0), reject=80.0)}, {}, "its windows were made with --reject 80"),
        ({}, {"max_windows": 3, "min_windows": 2}, "its windows were made with --max-windows 3 --min-windows 2"),
    ],
)
def test_a_store_that_the_challenge_does_not_score_is_refused(simulated, four_channels, plan, settings, words):
    store = copy.copy(simulated.windows)
    assert select_windows(store, "challenge1", {}, None, only_new=True)[0].index.size == len(store)
    manifest = store.manifest
    store.manifest = manifest.model_copy(
        update={
            "plan": manifest.plan.model_copy(update=plan),
            "settings": manifest.settings.model_copy(update=settings),
        }
    )
    store.channels, store.crop_samples = store.manifest.plan.channels, store.manifest.plan.crop_samples
    with pytest.raises(UserError, match=f": {words}.*; the score is of the challenge's windows: prepare them with"):
        select_windows(store, "challenge1", {}, None, only_new=True)


def test_windows_of_challenge_2_are_cut_as_the_scorer_s(simulated):
    plan = {"window": 4.0, "stride": 2.0}
    manifest = simulated.windows.manifest
    fits = manifest.model_copy(update={"plan": manifest.plan.model_copy(update=plan)})
    other = manifest.model_copy(update={"plan": manifest.plan.model_copy(update=plan | {"stride": 4.0})})
    assert other_cuts(fits, 2) == [] and other_cuts(other, 2) == ["--window 4 --stride 4"]


def test_a_zip_without_weights_fails_loudly(simulated, four_channels, tmp_path):
    import zipfile

    path = export_submission({1: simulated.ensemble(top=1)}, tmp_path / "s.zip", windows={1: simulated.windows})
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "bare.zip", "w") as target:
        for name in source.namelist():
            if not name.endswith(".pt"):
                target.writestr(name, source.read(name))
    with pytest.raises(UserError, match=r"bare\.zip: the scorer's process died .*FileNotFoundError.*raypipe check"):
        score_submission(tmp_path / "bare.zip", {"challenge1": simulated.windows.path})
