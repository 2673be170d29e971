"""Targets of several values: scores are means over outputs, and one value is scored as before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.bootstrap import bootstrap_subjects
from raypipe.core.fold_drawing import split_units
from raypipe.core.levels import level_of, ranking_score
from raypipe.core.metrics import METRICS, constant_out_of_fold, constant_prediction, score
from raypipe.core.outputs import one_value

VALUES = sorted(name for name, metric in METRICS.items() if metric.kind == "regression")


def draw(seed, k, n=48, people=12):
    rng = np.random.default_rng(seed)
    y_NK = rng.normal(size=(n, k)) * rng.uniform(0.1, 30, k) + rng.normal(size=k) * 10
    pred_NK = y_NK + rng.normal(size=(n, k)) * y_NK.std(0)
    subjects = np.repeat([f"{number:02d}" for number in range(people)], n // people)
    return y_NK, pred_NK, subjects, np.repeat(np.arange(4), n // 4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 4), metric=st.sampled_from(VALUES))
def test_a_score_is_the_mean_over_the_outputs_in_any_order(seed, k, metric):
    y_NK, pred_NK, subjects, folds = draw(seed, k)
    found = ranking_score(metric, "window", y_NK, pred_NK, subjects, folds)
    each = [ranking_score(metric, "window", y_NK[:, i], pred_NK[:, i : i + 1], subjects, folds) for i in range(k)]
    assert found == pytest.approx(np.mean(each), rel=1e-12)
    order = np.random.default_rng(seed).permutation(k)
    shuffled = ranking_score(metric, "window", y_NK[:, order], pred_NK[:, order], subjects, folds)
    assert shuffled == pytest.approx(found, rel=1e-12)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 4), metric=st.sampled_from(VALUES))
def test_equal_columns_score_as_one(seed, k, metric):
    y_N1, pred_N1, subjects, _ = draw(seed, 1)
    y_NK, pred_NK = np.repeat(y_N1, k, 1), np.repeat(pred_N1, k, 1)
    assert score(metric, y_NK, pred_NK) == pytest.approx(score(metric, y_N1[:, 0], pred_N1))
    one = bootstrap_subjects(metric, y_N1[:, 0], pred_N1, subjects, n=50)
    np.testing.assert_allclose(bootstrap_subjects(metric, y_NK, pred_NK, subjects, n=50), one)
    for targets in (y_N1[:, 0], y_NK):
        assert level_of(subjects, targets) == "window"
    assert split_units(subjects, y_NK, False, 3, 0) == split_units(subjects, y_N1[:, 0], False, 3, 0)


@pytest.mark.parametrize("metric", ["nrmse", "mae"])
def test_a_constant_has_one_number_for_each_output(metric):
    y_NK, _, subjects, folds = draw(0, 3)
    centre = np.median(y_NK, axis=0) if metric == "mae" else y_NK.mean(0)
    np.testing.assert_allclose(constant_prediction("regression", y_NK, 2, metric=metric), [centre, centre])
    found = constant_out_of_fold("regression", y_NK, folds, subjects, metric=metric)
    for k in range(3):
        one = constant_out_of_fold("regression", y_NK[:, k], folds, subjects, metric=metric)
        np.testing.assert_allclose(found[:, k : k + 1], one)
    if metric == "nrmse":
        assert score("nrmse", y_NK, constant_prediction("regression", y_NK, len(y_NK))) == pytest.approx(1.0)


def test_targets_of_people_are_found_in_every_output():
    people = np.repeat(["a", "b", "c"], 4)
    same_NK = np.repeat(np.arange(6.0).reshape(3, 2), 4, axis=0)
    assert level_of(people, same_NK) == "person"
    same_NK[0, 1] = 9.0
    assert level_of(people, same_NK) == "window"


def test_rows_are_ordered_by_the_mean_of_standardised_outputs():
    y_N = np.array([3.0, 1.0, 2.0])
    assert one_value(y_N) is y_N
    found = one_value(np.stack([y_N, 1000 * y_N, np.full(3, 7.0)], axis=1))
    assert list(np.argsort(found)) == [1, 2, 0]


def test_shapes_that_numpy_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="expected targets and predictions"):
        score("rmse", np.zeros((4, 2)), np.zeros((4, 1)))
