from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from raypipe.core.metrics import score
from raypipe.ensembles.methods import METHODS, draw_folds, forward, splits
from raypipe.ensembles.nested_cv import (
    AUTO,
    applied,
    choose,
    correlations,
    cross_predict,
    curve,
    limited,
    nested_scores,
)
from raypipe.ensembles.oof import Members
from raypipe.ensembles.weights import temperature
from raypipe.models.combine import combine


def values(answers_MN, y, variances=None, subjects=20) -> Members:
    n = len(y)
    names = np.repeat([f"s{k:02d}" for k in range(subjects)], -(-n // subjects))[:n]
    answers = np.asarray(answers_MN, dtype=np.float32).astype(float)[:, :, None]
    labels = [f"trial {k}" for k in range(len(answers))]
    folds = np.zeros(n, np.int64)
    return Members(labels, answers, y, names, folds, np.arange(n), "nrmse", "regression", variances)


def classes(seed=0, n=1200, sharpness=(2.0, 2.0, 2.0)) -> Members:
    """Members whose logits are noisy copies of the truth's; the last exaggerates."""
    rng = np.random.default_rng(seed)
    truth_N = rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(-2 * truth_N))).astype(np.int64)
    logits = [s * (truth_N + 0.7 * rng.normal(size=n)) for s in sharpness]
    p_MN = 1 / (1 + np.exp(-np.array(logits)))
    names = np.repeat([f"s{k:02d}" for k in range(20)], n // 20)
    labels = [f"trial {k}" for k in range(len(sharpness))]
    answers = np.stack([1 - p_MN, p_MN], axis=2).astype(np.float32).astype(float)
    return Members(labels, answers, y, names, np.zeros(n, np.int64), np.arange(n), "auc", "classification")


def mse(members: Members, name: str) -> float:
    """Mean squared error on subjects that the method was not fitted on."""
    return float(np.mean((cross_predict(METHODS[name].fit, members)[:, 0] - members.targets) ** 2))


def independent(spreads, n=8_000, seed=0) -> tuple[Members, float]:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    members = values([y + s * rng.normal(size=n) for s in spreads], y)
    return members, best_error(members, np.array(spreads)[:, None] ** 2.0)


def best_error(members: Members, variances_MN) -> float:
    """Mean squared error, on these very samples, of the best unbiased weights there are: inverse variances."""
    weights_MN = np.broadcast_to(1.0 / variances_MN, members.answers.shape[:2])
    mixed_N = (weights_MN * members.answers[:, :, 0]).sum(0) / weights_MN.sum(0)
    return float(np.mean((mixed_N - members.targets) ** 2))


@pytest.mark.parametrize("name", ["inverse-mse", "confidence", "greedy", "softmax"])
def test_weights_a_member_reach_the_optimum_for_independent_errors(name):
    members, optimum = independent((0.5, 0.7, 1.0, 1.4))
    # Greedy counts and the softmax have no weight for every optimum: a few per cent, where the others have 2.
    assert mse(members, name) < optimum * (1.02 if name in ("inverse-mse", "confidence") else 1.06)
    assert mse(members, "equal") > 1.1 * optimum


def test_ridge_beats_the_optimum_without_shrinking():
    members, optimum = independent((0.5, 0.7, 1.0, 1.4))
    # With the prior that targets have variance 1, the best linear answer is shrunk towards the mean.
    assert mse(members, "ridge") < 1.02 * optimum / (1 + optimum)


def test_weights_a_sample_reach_the_optimum_of_heteroscedastic_errors():
    rng = np.random.default_rng(1)
    n = 8_000
    y = rng.normal(size=n)
    told_MN = np.exp(rng.normal(size=(4, n)))
    factor_M = np.array([0.5, 1.0, 2.0, 4.0])  # told variances are off by these
    true_MN = factor_M[:, None] * told_MN
    members = values(y + np.sqrt(true_MN) * rng.normal(size=(4, n)), y, told_MN)
    optimum = best_error(members, true_MN)
    assert mse(members, "member-sample") < 1.02 * optimum
    assert mse(members, "sample") > 1.05 * optimum  # one calibration for all knows nothing of the members' factors
    assert mse(members, "sample") < mse(members, "equal")
    assert mse(members, "inverse-mse") > 1.3 * optimum
    even = values(y + np.sqrt(told_MN) * rng.normal(size=(4, n)), y, told_MN)
    assert mse(even, "sample") < 1.02 * best_error(even, told_MN)


def test_weights_a_sample_need_variances():
    members, _ = independent((1.0, 2.0), n=400)
    judged = nested_scores(members, ["equal", "sample"], auto=False)
    assert list(judged.scores) == ["equal"] and "tells a variance" in judged.left_out["sample"]


def test_temperatures_undo_exaggeration():
    members = classes(sharpness=(1.0, 5.0))
    calm, wild = (temperature(p_NK, members.targets) for p_NK in members.answers)
    assert wild / calm == pytest.approx(5.0, rel=0.2)
    rule = METHODS["member-sample"].fit(members)
    mixed = members.combined(rule)
    np.testing.assert_allclose(mixed.sum(1), 1.0, rtol=1e-6)
    assert score("auc", members.targets, mixed) > members.scores().max()


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("kind", ["values", "classes"])
def test_rules_are_plain_numbers_and_depend_on_no_other_sample(name, kind):
    members = classes(n=400) if kind == "classes" else independent((1.0, 2.0, 3.0), n=400)[0]
    if name == "snapshots":
        members = replace(members, trials=[0, 0, 1])
    elif METHODS[name].refusal(members):
        members = values(members.answers[:, :, 0], members.targets, np.full((3, 400), 1.0))
    rule = json.loads(json.dumps(METHODS[name].fit(members)))
    assert METHODS[name].fit(members) == rule  # again the same
    whole = members.combined(rule)
    np.testing.assert_allclose(members.rows(np.arange(5, 9)).combined(rule), whole[5:9], rtol=1e-12)
    told = None if members.variances is None else torch.from_numpy(members.variances).float()
    single = combine(rule, torch.from_numpy(members.answers).float(), told)
    np.testing.assert_allclose(single.numpy(), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["values", "classes"])
def test_trees_are_those_of_scikit_learn(kind, monkeypatch):
    from sklearn import ensemble

    members = classes(n=600) if kind == "classes" else independent((1.0, 2.0, 3.0), n=600)[0]
    name = "HistGradientBoostingClassifier" if kind == "classes" else "HistGradientBoostingRegressor"
    grown = []

    class Kept(getattr(ensemble, name)):
        def fit(self, x, y):
            grown.append((self, x))
            return super().fit(x, y)

    monkeypatch.setattr(ensemble, name, Kept)
    rule = METHODS["boosting"].fit(members)
    model, x_NF = grown[-1]
    theirs = model.predict_proba(x_NF) if kind == "classes" else (members.answers.mean(0)[:, 0] + model.predict(x_NF))
    np.testing.assert_allclose(members.combined(rule).squeeze(), theirs, rtol=1e-9)


def test_subjects_are_dealt_whole_and_alike():
    members = classes(n=400)
    groups = draw_folds(members, 4)
    assert set(groups) == {0, 1, 2, 3}
    for subject in np.unique(members.subjects):
        assert len(set(groups[members.subjects == subject])) == 1
    judged = np.zeros(400, int)
    for fit_N, judge_N in splits(members, 4):
        assert not set(members.subjects[fit_N]) & set(members.subjects[judge_N])
        judged += judge_N
    assert (judged == 1).all()


def test_nothing_is_won_from_noise_and_the_naive_score_is_optimistic():
    rng = np.random.default_rng(3)
    y = rng.normal(size=400)
    members = values(rng.normal(size=(12, 400)) * 0.3, y)
    judged = nested_scores(members, ["best", "equal", "greedy", "ridge"])
    naive = score("nrmse", y, applied(METHODS["greedy"].fit(members), members))
    assert judged.scores["greedy"] > naive
    assert judged.scores[AUTO] > 0.99
    assert judged.scores["ridge"] == pytest.approx(1.0, abs=0.03)


def test_a_limit_on_members_is_kept_and_judged_with_the_rest():
    members, _ = independent((0.5, 0.6, 3.0, 4.0), n=2000)
    for name in ("equal", "ridge", "boosting"):
        rule = limited(METHODS[name].fit, 2)(members)
        used = rule.get("only") or np.flatnonzero(rule["weights"]).tolist()
        assert set(used) <= {0, 1}
        assert applied(rule, members).shape == (2000, 1)
    assert forward(members, 2) == [0, 1]
    assert (
        nested_scores(members, ["equal"], most=2, auto=False).scores["equal"]
        < nested_scores(members, ["equal"]).scores["equal"]
    )


def test_the_choice_takes_the_simplest_of_equals():
    y = np.random.default_rng(0).normal(size=200)
    members = values(np.stack([y + 1, y + 1]), y)
    assert choose(members, {name: METHODS[name] for name in ("equal", "average", "confidence")}, None) == "equal"


def test_curve_and_correlations():
    members, _ = independent((1.0, 1.0, 1.0), n=4000)
    found = curve(members)
    assert found["by rank"][0] > found["by rank"][1] > found["by rank"][2]
    assert found["by rank"][2] == pytest.approx(found["complementing"][2])
    r_MM = correlations(members)
    np.testing.assert_allclose(np.diag(r_MM), 1.0)
    assert np.abs(r_MM - np.eye(3)).max() < 0.06


def test_who_tells_no_variance_has_one_weight_among_those_who_do():
    rng = np.random.default_rng(3)
    y = rng.normal(size=6_000)
    told_MN = np.exp(rng.normal(size=(2, 6_000)))
    wrong_MN = np.concatenate([np.sqrt(told_MN), np.full((1, 6_000), 1.3)]) * rng.normal(size=(3, 6_000))
    members = values(y + wrong_MN, y, np.concatenate([told_MN, np.zeros((1, 6_000))]))
    for name in ("sample", "member-sample"):
        rule = METHODS[name].fit(members)
        assert rule["scale"][2] == 0.0 and rule["floor"][2] == pytest.approx(1.3**2, rel=0.05)
        assert rule["scale"][:2] == pytest.approx([1.0, 1.0], abs=0.1)
        assert mse(members, name) < 1.02 * best_error(members, np.concatenate([told_MN, np.full((1, 6_000), 1.69)]))


def test_snapshots_are_those_of_the_best_members_trial():
    members = replace(independent((1.0, 2.0, 3.0, 1.5))[0], trials=[7, 4, 4, 7])
    assert METHODS["snapshots"].fit(members)["weights"] == [0.5, 0.0, 0.0, 0.5]
    assert METHODS["snapshots"].refusal(members) is None
    for trials in (None, [1, 2, 3, 4]):
        assert "optim/schedule=cyclic" in METHODS["snapshots"].refusal(replace(members, trials=trials))
