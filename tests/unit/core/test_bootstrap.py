from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.bootstrap import (
    MAX_CHANCE,
    MIN_SUBJECTS,
    Scored,
    bootstrap_difference,
    bootstrap_subjects,
    difference_of,
    smallest_chance,
)
from raypipe.core.levels import within_folds
from raypipe.core.metrics import METRICS, get_metric, score
from tests.unit.core.examples import example


@pytest.mark.parametrize("name", sorted(METRICS))
def test_interval_contains_the_score(name: str) -> None:
    y, pred, subjects = example(METRICS[name].kind, n=400)
    low, high, usable = bootstrap_subjects(name, y, pred, subjects, n=300)
    assert low < score(name, y, pred) < high and usable == 300
    assert bootstrap_subjects(name, y, pred, subjects, n=300) == (low, high, usable)
    narrow = bootstrap_subjects(name, y, pred, subjects, n=300, level=0.5)
    assert low < narrow.low < narrow.high < high


def test_the_seed_draws_the_resamples() -> None:
    y, pred, subjects = example("regression", n=400)
    drawn = [bootstrap_subjects("nrmse", y, pred, subjects, n=300, seed=seed) for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def test_scores_are_within_the_range_of_the_metric() -> None:
    y, subjects = np.tile([0, 1], 30), np.repeat(np.arange(6), 10).astype(str)
    p = np.where(y == 1, 0.8, 0.2) + 0.25 * np.random.default_rng(0).normal(size=60)
    interval = bootstrap_subjects("auc", y, np.stack([1 - p, p], 1), subjects, n=500)
    assert interval.high == 1.0 and 0.5 < interval.low < 1.0


def test_the_smallest_chance_depends_on_people_and_their_classes() -> None:
    people = np.array(list("aabbccdd"))
    assert smallest_chance(np.arange(8.0), people, classes=False) == 1 / 16
    assert smallest_chance([0, 1] * 4, people, classes=True) == 1 / 16  # each has both classes
    assert smallest_chance([0, 0, 0, 0, 1, 1, 1, 1], people, classes=True) == pytest.approx(1 / 6)
    assert smallest_chance([0, 0, 0, 1, 1, 1], list("abcdef"), classes=True) == pytest.approx(1 / 20)
    parts = [0, 0, 1, 1] * 3
    assert smallest_chance([0, 1] * 6, np.arange(12), classes=True, parts=parts) == pytest.approx(1 / 20)  # two of 20
    assert smallest_chance(np.arange(12.0), np.arange(12), classes=False, parts=parts) == 1 / 64
    alone = np.arange(12)  # one person in each part: the order is that of all
    assert smallest_chance([0, 1] * 6, alone, classes=True, parts=alone) == pytest.approx(924**-0.5)
    assert smallest_chance([0] * 12, alone, classes=True, parts=alone) == 1.0
    assert smallest_chance([0, 0, 0, 0, 1, 1, 1, 1], list("abcdefgh"), classes=True) == pytest.approx(1 / 70)


def test_interval_is_over_subjects() -> None:
    """Copies of a subject's windows add no information, so they must not narrow the interval."""
    y, pred, subjects = example("regression", n=40)
    once = bootstrap_subjects("nrmse", y, pred, subjects, n=200)
    often = bootstrap_subjects("nrmse", np.tile(y, 25), np.tile(pred, (25, 1)), np.tile(subjects, 25), n=200)
    assert often == pytest.approx(once)


def test_undefined_resamples_are_left_out() -> None:
    y, subjects = np.array([0, 0, 0, 0, 0, 1]), np.array(list("abcdef"))
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
    interval = bootstrap_subjects("auc", y, scores, subjects, n=500)
    assert 0 < interval.usable < 500 and 0 <= interval.low <= interval.high <= 1
    nothing = bootstrap_subjects("auc", np.zeros(6), scores, subjects, n=50)
    assert math.isnan(nothing.low) and nothing.usable == 0
    assert bootstrap_subjects("auc", y, scores * np.nan, subjects, n=50).usable == 0


def test_difference_is_paired() -> None:
    y, pred, subjects = example("regression", n=200)
    assert bootstrap_difference("nrmse", y, pred, pred, subjects, n=100) == (0.0, 0.0, 100)
    worse = y[:, None] + 1.1 * (pred - y[:, None])
    low, high, _ = bootstrap_difference("nrmse", y, pred, worse, subjects, n=300)
    one = bootstrap_subjects("nrmse", y, pred, subjects, n=300)
    assert low < high < 0 and high - low < one.high - one.low
    flipped = bootstrap_difference("nrmse", y, worse, pred, subjects, n=300)
    assert (flipped.low, flipped.high) == pytest.approx((-high, -low))


def test_each_side_of_a_difference_has_its_own_rows_of_the_same_subjects() -> None:
    y, a, subjects = example("regression", n=60)
    b, order = a + 0.3, np.random.default_rng(0).permutation(120)
    rmse = get_metric("rmse")
    twice = Scored(rmse, np.tile(y, 2)[order], np.tile(b, (2, 1))[order], np.tile(subjects, 2)[order])
    found = difference_of(Scored(rmse, y, a, subjects), twice, n=100)
    assert found == pytest.approx(bootstrap_difference("rmse", y, a, b, subjects, n=100))
    with pytest.raises(ValueError, match="the same subjects on both sides"):
        difference_of(
            Scored(rmse, y, a, subjects), Scored(rmse, y[1:], b[1:], [f"{subject}x" for subject in subjects[1:]])
        )


@given(
    subjects=st.integers(1, 12), windows=st.integers(1, 4), metric=st.sampled_from(["nrmse", "rmse", "mae"]),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_only_enough_subjects_have_an_interval(subjects: int, windows: int, metric: str, seed: int) -> None:
    """Scores and differences have one from the same number of subjects on, however many windows there are."""
    rng = np.random.default_rng(seed)
    n = subjects * windows
    y, names = rng.normal(size=n), np.repeat(np.arange(subjects), windows)
    a, b = rng.normal(size=(2, n, 1))
    score_of = bootstrap_subjects(metric, y, a, names, n=50)
    difference = bootstrap_difference(metric, y, a, b, names, n=50)
    for found in (score_of, difference):
        assert math.isnan(found.low) == math.isnan(found.high) == (subjects < MIN_SUBJECTS)
        assert (found.usable > 0) == (subjects >= MIN_SUBJECTS)


def test_fewer_subjects_can_show_nothing() -> None:
    """All signs agree more often than 1 in 20 by chance, so that an interval of a difference would always contain 0."""
    assert 2.0 ** (1 - (MIN_SUBJECTS - 1)) > 0.05 >= 2.0 ** (1 - MIN_SUBJECTS)
    few = np.arange(MIN_SUBJECTS - 1)
    assert smallest_chance(few.astype(float), few, classes=False) > MAX_CHANCE


def test_wrong_subjects_are_refused() -> None:
    y, pred, subjects = example("regression")
    with pytest.raises(ValueError, match="each of 60"):
        bootstrap_subjects("nrmse", y, pred, subjects[:-1])


def test_differences_are_within_the_range_of_the_metric() -> None:
    y, subjects = np.array([0, 1, 0, 1, 0, 1]), np.arange(6).astype(str)
    forward = [0.1, 0.4, 0.6, 0.9, 0.2, 0.8]
    a, b = (np.stack([1 - np.array(p), p], 1) for p in (forward, forward[::-1]))
    found = bootstrap_difference("auc", y, a, b, subjects)
    assert -1.0 <= found.low <= found.high <= 1.0


def test_a_cross_validated_score_has_an_interval_of_twice_the_variance():
    rng = np.random.default_rng(1)
    y, subjects = rng.normal(size=240), np.repeat(np.arange(24), 10)
    pred = (y + rng.normal(size=240))[:, None]
    value = score("nrmse", y, pred)
    plain, wide = (bootstrap_subjects("nrmse", y, pred, subjects, n=200, cross_validated=cv) for cv in (False, True))
    for one, other in zip(plain[:2], wide[:2], strict=True):
        assert other - value == pytest.approx(2**0.5 * (one - value))
    poor = bootstrap_subjects("r2", y, -pred, subjects, n=200, cross_validated=True)
    best = bootstrap_subjects("r2", y, y[:, None] + 0.01 * pred, subjects, n=200, cross_validated=True)
    assert poor.low < 0 < best.low < best.high <= 1.0


def test_a_cross_validated_difference_contains_0_where_twice_the_variance_does():
    part = np.random.default_rng(0).normal(size=40)
    part = 0.1 * (part - part.mean()) / part.std() + 2.5 * 0.1 / 40**0.5  # 2.5 standard errors above 0
    y, subjects = np.zeros(40), np.arange(40)
    better, worse = np.ones((40, 1)), np.sqrt(1.0 + part)[:, None]
    plain, wide = (
        bootstrap_difference("rmse", y, better, worse, subjects, n=500, cross_validated=cv) for cv in (False, True)
    )
    assert plain.high < 0 < wide.high


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_intervals_of_cross_validated_ridge_cover_what_chance_gives(kind):
    """Two people are in each other's training data, which resamples of the predictions do not see."""
    covered, n, n_folds = [], 60, 5
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, 20))
        y = rng.permutation(np.arange(n) % 2) if kind == "classes" else rng.normal(size=n)
        fold, predicted = rng.permutation(np.arange(n) % n_folds), np.empty(n)
        for k in range(n_folds):
            inside, centre = fold != k, y[fold != k].mean()
            gram = x[inside].T @ x[inside] + 60 * np.eye(20)
            predicted[~inside] = centre + x[~inside] @ np.linalg.solve(gram, x[inside].T @ (y[inside] - centre))
        shown, metric = predicted[:, None], "r2"
        if kind == "classes":
            shown, metric = np.stack([1 - predicted, predicted], axis=1), within_folds("auc", fold)
        plain, wide = (
            bootstrap_subjects(metric, y, shown, np.arange(n), n=200, cross_validated=cv) for cv in (False, True)
        )
        truth = 0.5 if kind == "classes" else 1 - (1 + np.mean((predicted - predicted.mean()) ** 2))
        covered.append([found.low <= truth <= found.high for found in (plain, wide)])
    as_fixed, found = np.mean(covered, axis=0)
    assert as_fixed < 0.94 and found >= 0.94
