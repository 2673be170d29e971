from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raypipe.core.metrics import score
from raypipe.ensembles.methods import METHODS, auto_methods
from raypipe.ensembles.nested_cv import (
    AUTO,
    choose_method,
    error_correlations,
    limit_members,
    run_nested_cv,
    score_by_ensemble_size,
    simplest_within_error,
)
from raypipe.ensembles.scores import EvaluationSet, score_interval
from raypipe.ensembles.selection import forward_selection
from tests.support.member_predictions import classes, independent, values


def test_weights_per_window_need_variances():
    members, _ = independent((1.0, 2.0), n=400)
    nested = run_nested_cv(members, ["equal", "sample"])
    assert list(nested.scores) == ["equal"] and "predicts a variance" in nested.excluded["sample"]


def test_random_predictions_gain_nothing_and_the_naive_score_is_optimistic():
    rng = np.random.default_rng(3)
    y = rng.normal(size=400)
    members = values(rng.normal(size=(12, 400)) * 0.3, y)
    names = ["best", "equal", "greedy", "ridge"]
    nested = run_nested_cv(members, names, auto=names)
    naive = score("nrmse", y, members.combine(METHODS["greedy"].fit(members)))
    assert nested.scores["greedy"] > naive
    assert nested.scores[AUTO] > 0.99
    assert nested.scores["ridge"] == pytest.approx(1.0, abs=0.03)


def test_a_limit_on_members_is_kept_and_scored_with_the_rest():
    members, _ = independent((0.5, 0.6, 3.0, 4.0), n=2000)
    for name in ("equal", "ridge", "boosting"):
        rule = limit_members(METHODS[name].fit, 2)(members)
        used = rule.get("only") or np.flatnonzero(rule["weights"]).tolist()
        assert set(used) <= {0, 1}
        assert members.combine(rule).shape == (2000, 1)
    assert forward_selection(members, 2) == [0, 1]
    assert (
        run_nested_cv(members, ["equal"], max_members=2).scores["equal"]
        < run_nested_cv(members, ["equal"]).scores["equal"]
    )


def test_the_simplest_of_equal_methods_is_chosen():
    y = np.random.default_rng(0).normal(size=200)
    members = values(np.stack([y + 1, y + 1]), y)
    assert choose_method(members, {name: METHODS[name] for name in ("equal", "average", "confidence")}, None) == "equal"


def test_score_by_ensemble_size_and_error_correlations():
    members, _ = independent((1.0, 1.0, 1.0), n=4000)
    found = score_by_ensemble_size(members)
    scores = [each.score for each in found["by rank"]]
    assert scores[0] > scores[1] > scores[2] == pytest.approx(found["complementing"][2].score)
    assert all(each.low < each.score < each.high for each in found["by rank"])
    r_MM = error_correlations(members)
    np.testing.assert_allclose(np.diag(r_MM), 1.0)
    assert np.abs(r_MM - np.eye(3)).max() < 0.06


def test_intervals_by_ensemble_size_are_those_of_the_table():
    """They are over people at the level of the score, as `score_interval` gives them."""
    members, _ = independent((1.0, 1.0), n=400)
    people = replace(members, subjects=np.repeat(np.arange(20), 20), level="person")
    people = replace(people, targets=np.repeat(people.targets[::20], 20))
    found = score_by_ensemble_size(people)["by rank"][1]
    side = EvaluationSet(people.targets, people.subjects, people.folds, cross_validated=True)
    mean = side.mean_per_subject(people.predictions.mean(0))
    expected = score_interval(people.metric, side.per_subject(), mean)
    assert found.score == pytest.approx(side.per_subject().score(people.metric, mean))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.1)
    few = replace(people, subjects=people.subjects // 4)
    assert np.isnan(score_by_ensemble_size(few)["by rank"][1].low)


def test_intervals_by_ensemble_size_compare_within_folds():
    """Offsets between folds, which change no order within one, change no interval either."""
    found = classes(n=1200, sharpness=(1.0, 2.0))
    of_two = replace(found, folds=np.arange(1200) // 600)
    odds_MN = np.log(found.predictions[:, :, 1] / found.predictions[:, :, 0]) + 3.0 * of_two.folds
    p_MN = 1 / (1 + np.exp(-odds_MN))
    shifted = replace(of_two, predictions=np.stack([1 - p_MN, p_MN], axis=2))
    one, other = (score_by_ensemble_size(members)["by rank"][0] for members in (of_two, shifted))
    assert one == pytest.approx(other, abs=1e-6) and one.low < one.score < one.high


def test_a_simpler_method_is_preferred_if_no_other_is_better_by_more_than_a_standard_error():
    rng = np.random.default_rng(5)
    y = rng.normal(size=400)
    one, other = y + rng.normal(size=(2, 400))
    like = values([one, other], y)
    predictions = {
        "best": one[:, None],
        "equal": (one + other)[:, None] / 2,
        "ridge": (0.52 * one + 0.48 * other)[:, None],
    }
    assert simplest_within_error(predictions, like) == "equal"  # half of the error's variance; ridge adds nothing
    slightly = one + 0.02 * rng.normal(size=400)
    found = {"best": slightly[:, None], "equal": one[:, None]}
    assert score("nrmse", y, found["best"]) > score("nrmse", y, found["equal"])
    assert simplest_within_error(found, like) == "best"


def test_auto_considers_few_methods_and_prefers_the_simpler_ones():
    assert auto_methods("classification") == ["best", "equal", "greedy", "ridge"]
    assert auto_methods("regression") == ["best", "equal", "greedy", "ridge", "sample"]
    assert list(METHODS)[:5] == auto_methods("regression")
