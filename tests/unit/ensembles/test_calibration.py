from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression

from raypipe.core.metrics import score
from raypipe.ensembles.calibration import (
    Calibration,
    calibrate_across,
    fit_calibration,
    fit_rows,
)
from raypipe.ensembles.decisions import decide
from raypipe.ensembles.fit import _scores_of_choice
from raypipe.ensembles.held_out import calibrate_rows
from raypipe.ensembles.nested_cv import NestedResult
from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.scores import EvaluationSet, RowPredictions, Scoring, score_table
from raypipe.models.combine import calibrate


def overconfident(n_subjects=60, each=20, k=2, seed=0, share=0.3, scale=4.0):
    """Return probabilities whose log odds are too large, classes and subjects; the second of two classes is rare."""
    rng = np.random.default_rng(seed)
    n = n_subjects * each
    prior = np.log([1 - share, share]) if k == 2 else np.zeros(k)
    logits = prior + rng.normal(size=(n, k))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = (rng.random(n)[:, None] > true.cumsum(1)).sum(1).clip(0, k - 1)
    shown = np.exp(scale * (logits - prior))
    subjects = np.repeat([f"s{i:03d}" for i in range(n_subjects)], each)
    return shown / shown.sum(1, keepdims=True), y, subjects, true


def members(p, y, subjects, metric="log-loss"):
    return MemberPredictions(
        ["a"], p[None], y, subjects, np.zeros(len(y), np.int64), np.arange(len(y)), metric, "classification"
    )


@pytest.mark.parametrize("k", [2, 4])
def test_calibration_undoes_overconfidence(k):
    p, y, subjects, true = overconfident(k=k)
    found = fit_calibration("log-loss", p, y, subjects)
    assert found.scale == pytest.approx(0.25, abs=0.03)
    assert np.abs(found(p) - true).mean() < 0.02 < np.abs(p - true).mean()
    assert found(p).sum(1) == pytest.approx(1.0)
    assert score("log-loss", y, found(p)) < score("log-loss", y, p) - 0.2


def test_with_many_subjects_it_is_platt_scaling_of_scikit_learn():
    p, y, _, _ = overconfident(n_subjects=500, each=4)
    odds = np.log(p[:, 1] / p[:, 0])
    oracle = LogisticRegression(C=1e9).fit(odds[:, None], y)
    found = fit_calibration("log-loss", p, y, np.arange(len(y)))
    assert found.scale == pytest.approx(oracle.coef_[0, 0], rel=0.02)
    assert found.shift[1] == pytest.approx(oracle.intercept_[0], rel=0.02)


@given(st.floats(0.05, 4), st.floats(-5, 5), st.integers(0, 99))
def test_it_keeps_the_order_of_two_classes(scale, shift, seed):
    p, y, _, _ = overconfident(n_subjects=8, each=8, seed=seed, scale=1.0)
    q = Calibration(scale, (0.0, shift), (0.5, 0.5))(p)
    assert score("auc", y, q) == pytest.approx(score("auc", y, p), abs=1e-6)


@given(order=st.permutations([0, 1, 2]), seed=st.integers(0, 5))
def test_the_order_of_classes_makes_no_difference(order, seed):
    """Few subjects, so that the prior counts."""
    p, y, subjects, _ = overconfident(n_subjects=5, each=8, k=3, seed=seed)
    found = fit_calibration("log-loss", p, y, subjects)
    other = fit_calibration("log-loss", p[:, order], np.argsort(order)[y], subjects)
    np.testing.assert_allclose(other(p[:, order]), found(p)[:, order], atol=1e-4)


def test_few_subjects_change_little_and_none_turns_the_order_round():
    p, y, subjects, _ = overconfident(n_subjects=3)
    assert 0.25 < fit_calibration("log-loss", p, y, subjects).scale < 1.0
    q, y, subjects, _ = overconfident()
    assert fit_calibration("log-loss", q[:, ::-1].copy(), y, subjects).scale == pytest.approx(0.05)


def test_a_metric_of_no_classes_keeps_the_most_probable_class():
    p, y, subjects, _ = overconfident()
    assert fit_calibration("auc", p, y, subjects).decision_weights == (0.5, 0.5)
    assert fit_calibration("log-loss", *overconfident(k=4)[:3]).decision_weights == (0.25,) * 4


def test_each_subject_is_calibrated_by_others():
    """Other predictions for a subject change the calibration of others, but not its own weights."""
    p, y, subjects, _ = overconfident(n_subjects=12)
    first = calibrate_across(members(p, y, subjects, "f1"), p)
    own = subjects == "s004"
    second = calibrate_across(members(p, y, subjects, "f1"), np.where(own[:, None], p[:, ::-1], p))
    assert not np.allclose(first[0][~own], second[0][~own])
    assert np.allclose(first[1][own], second[1][own])


def test_scores_of_classes_are_by_weights_chosen_on_others():
    p, y, subjects, _ = overconfident(n_subjects=40, share=0.15, scale=1.0)
    out = subjects >= "s030"
    folds = np.unique(subjects, return_inverse=True)[1] % 4
    search, held = (EvaluationSet(y[m], subjects[m], folds[m]) for m in (~out, out))
    raw = RowPredictions(p[out], p[~out], p[~out])
    rows = dict.fromkeys(("ensemble", "equal weights", "best single trial"), raw)
    like = members(p[~out], y[~out], subjects[~out], "f1")
    calibrated, found = calibrate_rows(like, rows)
    table = score_table(Scoring("f1", "classification", 2, "window"), calibrated, search, held)
    assert found is not None
    expected = sklearn_metrics.f1_score(y[out], decide(found(p[out]), found.decision_weights).argmax(1))
    assert table.loc["ensemble", "held_out"] == pytest.approx(expected)
    nested, weights = calibrate_across(like, p[~out])
    at_others = sklearn_metrics.f1_score(y[~out], decide(nested, weights).argmax(1))
    assert table.loc["ensemble", "nested"] == pytest.approx(at_others)
    assert table.loc["ensemble", "oof"] >= table.loc["ensemble", "nested"]
    assert table.loc["ensemble", "nested"] > sklearn_metrics.f1_score(y[~out], p[~out, 1] > 0.5) - 0.01


def test_the_nested_auc_is_of_one_scale_and_a_regression_has_no_calibration():
    p, y, subjects, _ = overconfident(n_subjects=12)
    row = RowPredictions(p, p, p)
    rows, _ = calibrate_rows(members(p, y, subjects, "auc"), {"ensemble": row})
    assert rows["ensemble"].nested is p and rows["ensemble"].oof is p
    assert not np.allclose(rows["ensemble"].held_out, p)
    values = MemberPredictions(
        ["a"], y[None, :, None], y, subjects, np.zeros(len(y)), np.arange(len(y)), "nrmse", "regression"
    )
    assert calibrate_rows(values, {"ensemble": row}) == ({"ensemble": row}, None)


def test_the_shipped_map_is_the_offline_one():
    import torch

    p, y, subjects, _ = overconfident(n_subjects=6)
    found = fit_calibration("f1", p, y, subjects)
    shipped = calibrate(torch.tensor(p, dtype=torch.float32), found.spec)
    assert shipped.dtype == torch.float32
    assert shipped.numpy() == pytest.approx(found(p), abs=1e-6)


def test_people_who_happen_to_have_one_class_each_are_windows_where_the_run_scores_windows():
    """A nested part may have such people only, and its weights would be those of their means."""
    p, _, subjects, _ = overconfident(n_subjects=6)
    ones = np.unique(subjects, return_inverse=True)[1] % 2
    some = np.r_[np.flatnonzero(subjects != "s000"), np.flatnonzero(subjects == "s000")[:3]]
    given = p[some], ones[some], subjects[some]
    like = replace(members(*given, "log-loss"), level="window")
    assert fit_rows(like, given[0]) == fit_calibration("log-loss", *given, level="window")
    assert fit_rows(replace(like, level="person"), given[0]) == fit_calibration("log-loss", *given)
    assert fit_rows(like, given[0]) != fit_calibration("log-loss", *given)


def table_of_one_trial(metric: str) -> tuple[pd.DataFrame, MemberPredictions]:
    """Return the score table of one trial, where nothing is chosen, and its predictions: a class for each person."""
    p, _, subjects, _ = overconfident(n_subjects=30)
    y = np.repeat(np.arange(30) % 2, 20)
    like = replace(members(p, y, subjects, metric), level="person", folds=np.repeat(np.arange(30) % 5, 20))
    row = RowPredictions(p, p, p)
    rows, _ = calibrate_rows(like, {"ensemble": row, "best single trial": row})
    search = EvaluationSet(y, subjects, like.folds, cross_validated=True)
    return score_table(Scoring(metric, "classification", 2, "person"), rows, search, search), like


def test_where_nothing_is_chosen_an_auc_of_people_has_no_optimism():
    table, _ = table_of_one_trial("auc")
    assert table.loc["ensemble", "optimism"] == 0.0


@pytest.mark.parametrize("metric", ["auc", "log-loss", "balanced-accuracy"])
def test_the_verdict_quotes_nested_scores_of_the_table(metric):
    table, like = table_of_one_trial(metric)
    nested = NestedResult({"best": like.predictions[0]}, {"best": like.score(like.predictions[0])}, {})
    candidates = SimpleNamespace(predictions=like, run=SimpleNamespace(info=like))
    found = _scores_of_choice(candidates, SimpleNamespace(nested=nested, among=["best"]))
    assert found["best"] == pytest.approx(table.loc["best single trial", "nested"])
