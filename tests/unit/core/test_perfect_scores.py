"""Bounds of perfect scores: how often the truth is below them, in simulations, and the laws that they obey."""

from __future__ import annotations

import math
from functools import partial
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.core.bootstrap import bootstrap_difference, bootstrap_subjects, smallest_chance
from raypipe.core.class_metrics import OF_CONFUSION
from raypipe.core.intervals import Interval
from raypipe.core.levels import within_folds
from raypipe.core.metrics import METRICS, get_metric
from raypipe.core.perfect_scores import interval_of_agreeing

CLASS_METRICS = ("auc", "accuracy", "balanced-accuracy", "f1", "kappa")
TAIL = 0.025


def bound(name, y, subjects=None, level=0.95):
    subjects = np.arange(len(y)) if subjects is None else subjects
    return interval_of_agreeing(get_metric(name), 1.0, y, subjects, level)[0]


def of_classes(*counts):
    return np.repeat(np.arange(len(counts)), counts)


SHAPES = {
    "normal": lambda rng, size: rng.normal(size=size),
    "exponential": lambda rng, size: rng.exponential(size=size),
    "mirrored": lambda rng, size: -rng.exponential(size=size),
    "gamma": lambda rng, size: rng.gamma(2.0, size=size),
    "student": lambda rng, size: rng.standard_t(4, size=size),
    "bimodal": lambda rng, size: rng.beta(0.5, 0.5, size=size),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("counts", [(3, 3), (4, 8), (12, 12), (30, 30)])
def test_few_perfect_aucs_have_a_truth_below_their_bound(counts, shape):
    """At the AUC of the bound, 2.5 % of samples are perfect, or fewer."""
    rng, (n, others) = np.random.default_rng(0), counts
    low, draw = bound("auc", of_classes(others, n)), partial(SHAPES[shape], rng)
    shift = -float(np.quantile(draw((3000, 1)) - draw((1, 3000)), 1 - low))  # at which the AUC is that of the bound
    perfect = (shift + draw((30_000, n))).min(1) > draw((30_000, others)).max(1)
    assert perfect.mean() < 0.035, "2.5 % and the noise of the simulation, which is that of the shift"


@pytest.mark.parametrize("name", ["accuracy", "balanced-accuracy", "f1", "kappa"])
@pytest.mark.parametrize("counts", [(3, 3), (3, 9), (10, 10)])
def test_few_perfect_decisions_have_a_truth_below_their_bound(name, counts):
    """Whatever the recalls, the true score is below the bound in 2.5 % of perfect samples at most."""
    rng, y = np.random.default_rng(1), of_classes(*counts)
    low = bound(name, y)
    for recalls in rng.uniform(0.3, 1.0, (300, 2)):
        n_K = np.array(counts, float)
        errors_KK = np.array([[recalls[0], 1 - recalls[0]], [1 - recalls[1], recalls[1]]])
        expected = float(OF_CONFUSION[name]((n_K[:, None] * errors_KK).reshape(1, 4))[0])
        chance = float(np.prod(recalls**n_K))
        assert expected >= low - 0.003 or chance <= TAIL


def test_a_share_has_the_bound_of_clopper_and_pearson():
    from scipy.stats import binomtest

    for n in (6, 13, 50):
        exact = binomtest(n, n).proportion_ci(0.95, "exact")
        y = np.arange(n) % 2
        assert bound("accuracy", y) == pytest.approx(exact.low, abs=1e-4)
        assert bound("auc", np.tile([0, 1], n), np.repeat(np.arange(n), 2)) == pytest.approx(exact.low)
    assert bound("accuracy", np.arange(100) % 2, level=0.9) == pytest.approx(1 - 3 / 100, abs=1e-3), "the rule of three"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30))
def test_an_auc_excludes_chance_where_the_permutation_test_does(n, others):
    y = of_classes(n, others)
    assert (bound("auc", y) > 0.5) == (1 / comb(n + others, n) < TAIL)
    assert bound("auc", y) == pytest.approx(bound("auc", 1 - y))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(CLASS_METRICS), st.integers(3, 20), st.integers(3, 20), st.integers(1, 4))
def test_more_subjects_narrow_it_and_more_windows_do_not(name, n, others, windows):
    y = of_classes(n, others)
    low, subjects = bound(name, y), np.arange(len(y))
    assert bound(name, np.repeat(y, windows), np.repeat(subjects, windows)) == pytest.approx(low)
    assert METRICS[name].limits[0] < low < bound(name, of_classes(n + 1, others + 1)) < 1.0
    assert bound(name, y, level=0.8) > low


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_all_wrong_is_bounded_from_above(name):
    y = of_classes(4, 4)
    worst = METRICS[name].limits[0]
    low, high = interval_of_agreeing(get_metric(name), worst, y, np.arange(8), 0.95)
    assert low == worst < high < 1.0


def test_folds_and_repeats_separate_their_own_people_only():
    y = of_classes(6, 6)
    folds = np.tile([0, 1], 6)
    low = interval_of_agreeing(within_folds("auc", folds), 1.0, y, np.arange(12), 0.95)[0]
    assert bound("auc", of_classes(3, 3)) < low < bound("auc", y)
    twice = [np.concatenate([each, each]) for each in (y, np.arange(12))]
    again = within_folds("auc", np.concatenate([folds, 2 + folds]))
    assert interval_of_agreeing(again, 1.0, *twice, 0.95)[0] == pytest.approx(low), "a repeat adds no people"
    alone = interval_of_agreeing(within_folds("auc", np.arange(12)), 1.0, y, np.arange(12), 0.95)[0]
    assert alone == pytest.approx(bound("auc", y)), "one person a fold: the score is over all of them"


def test_folds_count_as_one_for_all_classes_where_one_class_has_no_pair():
    y, folds = np.array([0, 1, 0, 1, 0, 1, 2, 2, 2]), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    low = interval_of_agreeing(within_folds("auc", folds), 1.0, y, np.arange(9), 0.95)[0]
    assert low == pytest.approx(bound("auc", y))


def test_three_classes_have_the_bound_of_the_least_certain():
    assert bound("auc", of_classes(4, 4, 10)) == pytest.approx(bound("auc", of_classes(4, 14)))
    assert 0.3 < bound("balanced-accuracy", of_classes(4, 4, 4)) < 1.0


def perfect(*counts, each=3):
    y, subjects = np.repeat(of_classes(*counts), each), np.repeat(np.arange(sum(counts)), each)
    rng = np.random.default_rng(0)
    sure = np.eye(len(counts))[y] + 0.4 * rng.random((len(y), len(counts)))
    return y, sure / sure.sum(1, keepdims=True), subjects


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_an_interval_of_a_perfect_score_has_a_width(name):
    y, pred, subjects = perfect(5, 5)
    low, high, usable = bootstrap_subjects(name, y, pred, subjects, n=300)
    assert METRICS[name].limits[0] < low < 0.9 and high == 1.0 and usable > 200


def test_the_difference_of_a_perfect_score_from_chance_excludes_0_where_a_claim_can_be_made():
    for counts in ((3, 3), (4, 4)):
        y, pred, subjects = perfect(*counts)
        found = bootstrap_difference("auc", y, pred, np.full_like(pred, 0.5), subjects, n=300)
        claim = smallest_chance(y, subjects, classes=True) <= TAIL
        assert (found.low > 0) == claim and found.high == 0.5 and found.low < 0.1


def test_two_perfect_predictions_differ_by_as_much_as_their_bounds_and_one_by_nothing():
    y, pred, subjects = perfect(5, 5)
    same = bootstrap_difference("auc", y, pred, pred, subjects, n=300)
    assert (same.low, same.high) == (0.0, 0.0)
    other = bootstrap_difference("auc", y, pred, pred**2, subjects, n=300)
    assert other.low == pytest.approx(-other.high) and other.high == pytest.approx(1 - bound("auc", of_classes(5, 5)))


def test_scores_without_an_end_have_no_interval_and_exact_ones_keep_theirs():
    y, _, subjects = perfect(5, 5)
    exact = bootstrap_subjects("rmse", y.astype(float), y[:, None].astype(float), subjects, n=100)
    assert isinstance(exact, Interval) and math.isnan(exact.low) and math.isnan(exact.high)
    chance = bootstrap_subjects("auc", y, np.full((len(y), 2), 0.5), subjects, n=100)
    assert (chance.low, chance.high) == (0.5, 0.5)
