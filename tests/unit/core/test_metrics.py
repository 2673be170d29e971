from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sklearn_metrics
from sklearn.metrics import roc_auc_score

from raypipe.core.class_metrics import auc
from raypipe.core.errors import UserError
from raypipe.core.metrics import (
    METRICS,
    constant_out_of_fold,
    constant_prediction,
    get_metric,
    metric_for,
    score,
)
from raypipe.core.value_metrics import nrmse
from raypipe.trial.evaluator import constant_baseline
from tests.support.toys import ToyWindows, make_run
from tests.unit.core.examples import example

balanced_accuracy = METRICS["balanced-accuracy"].value

FINITE = st.floats(-100, 100, allow_subnormal=False)
TARGETS = hnp.arrays(np.float64, st.integers(2, 40), elements=FINITE).filter(lambda y: y.std() > 1e-3)


@given(TARGETS)
def test_predicting_the_mean_has_an_nrmse_of_one(y: np.ndarray) -> None:
    assert nrmse(y, constant_prediction("regression", y, len(y))) == pytest.approx(1.0, rel=1e-9)
    assert nrmse(y, y[:, None]) == 0.0


@given(TARGETS, st.floats(0.01, 100), FINITE, st.integers(0, 99))
def test_nrmse_does_not_depend_on_the_unit(y: np.ndarray, scale: float, shift: float, seed: int) -> None:
    pred = y + np.random.default_rng(seed).normal(size=len(y))
    assert nrmse(scale * y + shift, scale * pred + shift) == pytest.approx(nrmse(y, pred), rel=1e-6)


def test_nrmse_is_pooled_and_by_population_deviation() -> None:
    y, pred = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0, 5.0])
    assert nrmse(y, pred) == pytest.approx(1.0 / np.sqrt(1.25))
    assert math.isnan(nrmse([1.0, 1.0], [1.0, 2.0])) and math.isnan(nrmse([], []))


@pytest.mark.parametrize(("y", "pred"), [((4, 1), (4, 1)), ((4,), (1, 4)), ((4,), (4, 2)), ((4,), (3,)), ((4,), ())])
def test_nrmse_never_broadcasts(y: tuple[int, ...], pred: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(N, 1\)"):
        nrmse(np.zeros(y), np.zeros(pred))


@given(st.integers(0, 999), st.integers(2, 4))
def test_auc_depends_on_the_order_of_scores_only(seed: int, k: int) -> None:
    y, scores, _ = example("classification", k=k, seed=seed)
    assert auc(y, np.exp(3 * scores) - 7) == pytest.approx(auc(y, scores))
    if k == 2:
        assert auc(y, scores) == pytest.approx(roc_auc_score(y, scores[:, 1]))
        assert auc(1 - y, scores) == pytest.approx(1 - auc(y, scores))
    else:
        shares = scores / scores.sum(1, keepdims=True)
        expected = roc_auc_score(y, shares, multi_class="ovr", average="macro")
        assert auc(y, shares) == pytest.approx(expected)


def test_constant_predictions_score_at_chance() -> None:
    y, _, _ = example("classification")
    pred = constant_prediction("classification", y, len(y), 3)
    assert pred.shape == (60, 3) and pred.sum(1) == pytest.approx(1.0)
    assert auc(y, pred) == pytest.approx(0.5)
    assert balanced_accuracy(y, pred) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="one or more"):
        constant_prediction("regression", [], 3)


def test_undefined_scores_are_nan() -> None:
    assert math.isnan(auc([0, 0, 1], np.eye(3)))
    assert math.isnan(balanced_accuracy([], np.zeros((0, 2))))
    bad = np.full((3, 2), np.nan)
    assert math.isnan(auc([0, 1, 1], bad)) and math.isnan(balanced_accuracy([0, 1, 1], bad))
    assert math.isnan(nrmse([0.0, 1.0], [0.0, np.inf]))


def test_balanced_accuracy_is_mean_recall() -> None:
    scores = np.eye(3)[[0, 0, 1, 1, 2]]
    assert balanced_accuracy([0, 0, 0, 1, 1], scores) == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("metric", [auc, balanced_accuracy])
@pytest.mark.parametrize(
    ("y", "scores"),
    [([0, 1], np.zeros(2)), ([0, 1], np.zeros((2, 1))), ([[0], [1]], np.zeros((2, 2))), ([0, 2], np.zeros((2, 2)))],
)
def test_classes_are_checked(metric: Any, y: Any, scores: Any) -> None:
    with pytest.raises(ValueError, match="classes"):
        metric(y, scores)


def test_metrics_are_found_by_name() -> None:
    assert {name for name, metric in METRICS.items() if metric.direction == "minimize"} == {
        *("log-loss", "brier", "nrmse", "rmse", "mae")
    }
    y, pred, _ = example("regression")
    assert score("nrmse", y, pred) == nrmse(y, pred)
    with pytest.raises(UserError, match="did you mean 'nrmse'"):
        score("nmrse", y, pred)


def test_the_sign_makes_lower_better() -> None:
    assert all(metric.sign == (1 if metric.direction == "minimize" else -1) for metric in METRICS.values())


@given(st.integers(0, 999), st.integers(2, 5), st.integers(5, 60))
def test_metrics_of_classes_are_those_of_scikit_learn(seed: int, k: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(k), rng.integers(0, k, n)]
    p = rng.dirichlet(np.ones(k), len(y))
    predicted, average = p.argmax(1), "binary" if k == 2 else "macro"
    oracle = {
        "balanced-accuracy": sklearn_metrics.balanced_accuracy_score(y, predicted),
        "accuracy": sklearn_metrics.accuracy_score(y, predicted),
        "f1": sklearn_metrics.f1_score(y, predicted, average=average),
        "kappa": sklearn_metrics.cohen_kappa_score(y, predicted),
        "log-loss": sklearn_metrics.log_loss(y, p),
        "brier": sklearn_metrics.brier_score_loss(y, p[:, 1] if k == 2 else p),
    }
    assert {name: score(name, y, p) for name in oracle} == pytest.approx(oracle, abs=1e-12)


@given(TARGETS, st.integers(0, 999))
def test_metrics_of_values_are_those_of_scikit_learn_and_scipy(y: np.ndarray, seed: int) -> None:
    from scipy.stats import pearsonr

    pred = 0.5 * y + y.std() * np.random.default_rng(seed).normal(size=len(y))
    assume(pred.std() > 1e-6 * y.std())
    oracle = {
        "rmse": sklearn_metrics.root_mean_squared_error(y, pred),
        "mae": sklearn_metrics.mean_absolute_error(y, pred),
        "r2": sklearn_metrics.r2_score(y, pred),
        "pearson": pearsonr(y, pred).statistic,
    }
    assert {name: score(name, y, pred[:, None]) for name in oracle} == pytest.approx(oracle, rel=1e-7, abs=1e-7)
    assert score("r2", y, pred) == pytest.approx(1 - nrmse(y, pred) ** 2, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_better_predictions_score_better(name: str) -> None:
    metric = METRICS[name]
    y, pred, _ = example(metric.kind, n=300, k=2)
    perfect = np.eye(2)[y] if metric.kind == "classification" else y[:, None]
    assert metric.better(metric.value(y, 0.5 * pred + 0.5 * perfect), metric.value(y, pred))
    assert math.isnan(metric.value(y, np.full_like(pred, np.nan)))


def test_predictions_that_are_constant_have_no_correlation() -> None:
    assert score("pearson", [1.0, 2.0, 4.0], np.ones((3, 1))) == 0.0
    assert math.isnan(score("pearson", np.ones(3), [1.0, 2.0, 4.0]))
    assert math.isnan(score("kappa", [0, 0], np.eye(2)[[0, 0]])) and math.isnan(score("f1", [0, 0], np.eye(2)[[0, 0]]))


def test_a_constant_is_the_best_one_for_the_metric() -> None:
    """A constant that is worse than another would make any predictor look as if it had learned something."""
    y = np.array([0, 0, 0, 1, 1])
    assert constant_prediction("classification", y, 1, 2, "f1").argmax() == 1  # F1 of 'always 1' is 0.57, of 0 it is 0
    assert constant_prediction("classification", y, 1, 2, "accuracy").tolist() == [[0.6, 0.4]]
    assert constant_prediction("classification", y, 1, 2, "balanced-accuracy").tolist() == [[0.6, 0.4]]
    values = np.array([0.0, 0.0, 0.0, 10.0])
    assert constant_prediction("regression", values, 1, metric="mae") == 0.0
    assert constant_prediction("regression", values, 1, metric="rmse") == 2.5


def test_a_metric_must_be_one_of_the_target() -> None:
    assert metric_for("classification", None, "t") == "auc" and metric_for("regression", None, "t") == "nrmse"
    assert metric_for("regression", "pearson", "t") == "pearson"
    with pytest.raises(UserError, match="--metric f1: target 'latency:A' predicts values; use one of nrmse, rmse, mae"):
        metric_for("regression", "f1", "latency:A")
    with pytest.raises(UserError, match="predicts classes; use one of auc, balanced-accuracy"):
        metric_for("classification", "mae", "t")
    with pytest.raises(UserError, match="--metric accurac: there is no such metric; did you mean 'accuracy'"):
        metric_for("classification", "accurac", "t")


def test_better_compares_in_the_metrics_direction() -> None:
    assert get_metric("nrmse").better(0.9, 1.0) and not get_metric("nrmse").better(1.0, 1.0)
    assert get_metric("auc").better(0.9, 0.8)
    for metric in METRICS.values():
        assert metric.better(0.5, math.nan) and not metric.better(math.nan, 0.5)
        assert not metric.better(math.nan, math.nan)


@given(st.sampled_from(sorted(METRICS)), st.integers(2, 4), st.integers(0, 999), st.integers(2, 20))
def test_scores_of_resamples_equal_scores_of_repeated_rows(name: str, k: int, seed: int, n: int) -> None:
    """The vectorised bootstrap scores a resample as the metric itself scores the repeated rows."""
    metric = METRICS[name]
    assume(n >= k)
    y, pred, subjects = example(metric.kind, n=n, k=k, seed=seed)
    _, subject_N = np.unique(subjects, return_inverse=True)
    counts_RS = np.random.default_rng(seed).integers(0, 3, (5, subject_N.max() + 1))
    fast_R = metric.resampled(y, pred, subject_N, counts_RS)
    for fast, counts_S in zip(fast_R, counts_RS, strict=True):
        rows = np.repeat(np.arange(n), counts_S[subject_N])
        assert fast == pytest.approx(metric.value(y[rows], pred[rows]), rel=1e-9, nan_ok=True)


def test_an_out_of_fold_constant_uses_the_other_subjects_only():
    y, folds, subjects = np.array([1.0, 2.0, 3.0, 10.0]), np.array([0, 0, 1, 1]), np.array(["a", "b", "c", "d"])
    np.testing.assert_allclose(constant_out_of_fold("regression", y, folds, subjects)[:, 0], [6.5, 6.5, 1.5, 1.5])
    repeated = np.r_[folds, 2, 3, 3, 2]  # a and d against b and c
    found = constant_out_of_fold("regression", np.tile(y, 2), repeated, np.tile(subjects, 2))[:, 0]
    np.testing.assert_allclose(found, [6.5, 6.5, 1.5, 1.5, 2.5, 5.5, 5.5, 2.5])
    classes = np.array([0, 0, 0, 2])
    found = constant_out_of_fold("classification", classes, folds, subjects, 3)
    np.testing.assert_allclose(found, [[0.5, 0, 0.5], [0.5, 0, 0.5], [1, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize("classes", [False, True])
def test_the_constant_baseline_of_a_run(tmp_path, classes):
    windows = ToyWindows(classes=classes)
    run = make_run(tmp_path / "run", windows)
    found = constant_baseline(run, windows)
    if classes:
        assert found == 0.5
        return
    pairs = [run.folds.split(windows.subjects, fold) for fold in range(run.folds.n_folds)]
    wrong = np.concatenate([windows.targets[out] - windows.targets[train].mean() for train, out in pairs])
    targets = np.concatenate([windows.targets[out] for _, out in pairs])
    assert found == pytest.approx(np.sqrt(np.mean(wrong**2)) / targets.std(), rel=1e-6)
    assert found >= 1.0
