"""Where scores are of people, each person counts the same in every fit, however many windows there are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raypipe.ensembles.calibration import fit_calibration
from raypipe.ensembles.methods import METHODS
from raypipe.ensembles.nested_cv import cross_predict
from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.stacking import boosting
from raypipe.ensembles.trial_pool import OUTER_GROUPS

PEOPLE, MEMBERS = 24, 4


def of_people(kind, windows_S, seed=0, noise_MS=None) -> MemberPredictions:
    """Return members that predict people's targets with errors of the person and of the window."""
    rng = np.random.default_rng(seed)
    n = len(windows_S)
    y_S = rng.permutation(np.arange(n) % 2) if kind == "classification" else rng.normal(size=n)
    person_N = np.repeat(np.arange(n), windows_S)
    noise_MS = np.ones((MEMBERS, n)) if noise_MS is None else noise_MS
    errors_MS = noise_MS * rng.normal(size=(len(noise_MS), n))
    values_MN = y_S[person_N] + errors_MS[:, person_N] + rng.normal(size=(len(noise_MS), len(person_N)))
    variances = np.exp(rng.normal(size=values_MN.shape)) if kind == "regression" else None
    predictions = values_MN[..., None]
    if kind == "classification":
        p_MN = 1 / (1 + np.exp(1 - 2 * values_MN))
        predictions = np.stack([1 - p_MN, p_MN], axis=2)
    return MemberPredictions(
        [f"trial {m}" for m in range(len(noise_MS))],
        predictions,
        y_S[person_N],
        np.array([f"s{s:03d}" for s in person_N]),
        person_N % 4,
        np.arange(len(person_N)),
        "brier" if kind == "classification" else "nrmse",
        kind,
        variances,
        trials=[0, 0, *range(2, len(noise_MS))],
        level="person",
    )


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "boosting"])
def test_a_person_whose_windows_are_there_nine_times_weighs_no_more(name, kind):
    members = of_people(kind, np.arange(PEOPLE) % 5 + 2)
    times_N = np.where(members.subjects < "s004", 9, 1)
    repeated = members.select_windows(np.repeat(np.arange(len(times_N)), times_N))
    one, other = (METHODS[name].fit(each) for each in (members, repeated))
    assert one.keys() == other.keys()
    for field in one.keys() - {"kind"}:
        assert other[field] == pytest.approx(one[field], rel=1e-3, abs=1e-6)


def test_a_person_whose_windows_are_there_nine_times_calibrates_no_more():
    members = of_people("classification", np.arange(PEOPLE) % 5 + 2)
    place_X = np.repeat(np.arange(len(members.subjects)), np.where(members.subjects < "s004", 9, 1))
    one, other = (
        fit_calibration("brier", each.predictions[0], each.targets, each.subjects)
        for each in (members, members.select_windows(place_X))
    )
    assert (other.scale, *other.shift) == pytest.approx((one.scale, *one.shift), rel=1e-3)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_boosting_weighs_each_person_the_same(kind, monkeypatch):
    from sklearn import ensemble

    members = of_people(kind, np.arange(PEOPLE) % 5 + 2)
    name = "HistGradientBoostingClassifier" if kind == "classification" else "HistGradientBoostingRegressor"
    seen = []

    class Kept(getattr(ensemble, name)):
        def fit(self, x, y, sample_weight=None):
            seen.append(sample_weight)
            return super().fit(x, y, sample_weight)

    monkeypatch.setattr(ensemble, name, Kept)
    boosting(members)
    boosting(replace(members, level="window"))
    weights_N, none = seen
    totals = [weights_N[members.subjects == subject].sum() for subject in np.unique(members.subjects)]
    assert totals == pytest.approx([len(weights_N) / PEOPLE] * PEOPLE) and none is None


@pytest.mark.parametrize("name", ["ridge", "inverse-mse", "confidence", "softmax"])
def test_people_with_many_windows_do_not_decide_for_the_others(name):
    """Four of 60 people have 200 windows each, and a member that is right for them alone."""
    windows_S = np.where(np.arange(60) < 4, 200, 5)
    rare_S = windows_S == 200
    noise_MS = np.stack([np.where(rare_S, 0.1, 2.0), np.where(rare_S, 2.0, 0.5)])
    differences = []
    for seed in range(6):
        members = of_people("regression", windows_S, seed, noise_MS)
        as_windows = replace(members, level="window")
        found = [
            members.score(cross_predict({name: METHODS[name].fit}, each, OUTER_GROUPS)[0][name])
            for each in (members, as_windows)
        ]
        differences.append(found[1] - found[0])
    assert np.mean(differences) > 0.02
