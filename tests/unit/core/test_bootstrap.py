from __future__ import annotations

import math

import numpy as np
import pytest

from raypipe.core.bootstrap import bootstrap_difference, bootstrap_subjects
from raypipe.core.metrics import METRICS, score
from tests.unit.core.examples import example


@pytest.mark.parametrize("name", sorted(METRICS))
def test_interval_contains_the_score(name: str) -> None:
    y, pred, subjects = example(METRICS[name].kind, n=400)
    low, high, usable = bootstrap_subjects(name, y, pred, subjects, n=300)
    assert low < score(name, y, pred) < high and usable == 300
    assert bootstrap_subjects(name, y, pred, subjects, n=300) == (low, high, usable)
    assert bootstrap_subjects(name, y, pred, subjects, n=300, seed=1) != (low, high, usable)
    narrow = bootstrap_subjects(name, y, pred, subjects, n=300, level=0.5)
    assert low < narrow.low < narrow.high < high


def test_interval_is_over_subjects() -> None:
    """Copies of a subject's windows add no information, so they must not narrow the interval."""
    y, pred, subjects = example("regression", n=40)
    once = bootstrap_subjects("nrmse", y, pred, subjects, n=200)
    often = bootstrap_subjects("nrmse", np.tile(y, 25), np.tile(pred, (25, 1)), np.tile(subjects, 25), n=200)
    assert often == pytest.approx(once)


def test_undefined_resamples_are_left_out() -> None:
    y, subjects = np.array([0, 0, 0, 1]), np.array(["a", "b", "c", "d"])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    interval = bootstrap_subjects("auc", y, scores, subjects, n=500)
    assert 0 < interval.usable < 500 and 0 <= interval.low <= interval.high <= 1
    nothing = bootstrap_subjects("auc", np.zeros(4), scores, subjects, n=50)
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


def test_wrong_subjects_are_refused() -> None:
    y, pred, subjects = example("regression")
    with pytest.raises(ValueError, match="two or more"):
        bootstrap_subjects("nrmse", y, pred, ["a"] * len(y))
    with pytest.raises(ValueError, match="each of 60"):
        bootstrap_subjects("nrmse", y, pred, subjects[:-1])
