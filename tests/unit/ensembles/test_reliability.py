from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.core.intervals import CROSS_VALIDATED
from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.reliability import (
    calibration_error,
    conformal_half_width,
    equal_bins,
    frequencies,
    reliability_of,
)
from tests.unit.ensembles.test_calibration import members, overconfident


def test_calibrated_probabilities_are_reliable_and_others_are_not():
    p, y, subjects, _ = overconfident()
    found = reliability_of(members(p, y, subjects), p)
    before = found.error_before
    assert before is not None and 0.15 < before.low <= before.value <= before.high
    error = found.calibration_error
    assert error is not None and error.low <= error.value <= error.high < 0.1
    assert len(found.bins) == 10 and sum(each.rows for each in found.bins) == len(y)
    for each in found.bins:
        assert each.observed.low <= each.observed.value <= each.observed.high
    within = [each.observed.low <= each.predicted <= each.observed.high for each in found.bins]
    assert sum(within) >= 9


def test_the_calibration_error_is_the_mean_gap_over_bins():
    p, y = np.array([0.1, 0.3, 0.8, 0.9]), np.array([0.0, 1.0, 1.0, 1.0])
    error = calibration_error(np.array([0, 0, 1, 1]))
    assert error.value(y, p) == pytest.approx(0.5 * abs(0.5 - 0.2) + 0.5 * abs(1.0 - 0.85))
    counts_RS = np.array([[1, 1], [2, 0]])
    resampled = error.resampled(y, p, np.array([0, 0, 1, 1]), counts_RS)
    assert resampled == pytest.approx([0.225, 0.3])
    assert equal_bins(np.full(5, 0.5)).max() == 0
    assert np.bincount(equal_bins(np.linspace(0, 1, 29))).min() >= 5, "few people make few bins"


def test_frequencies_are_of_people_where_the_target_is_a_persons():
    rng = np.random.default_rng(0)
    subjects = np.repeat([f"s{k:02d}" for k in range(40)], 5)
    y = np.repeat(np.arange(40) % 2, 5)
    second = np.clip(0.5 + 0.2 * (y - 0.5) + 0.2 * rng.normal(size=len(y)), 0.01, 0.99)
    p = np.stack([1 - second, second], axis=1)
    found = reliability_of(replace(members(p, y, subjects), level="person"), p)
    assert sum(each.rows for each in found.bins) == 40 and len(found.bins) == 8
    assert all(each.observed.low < each.observed.high for each in found.bins), "0 and 1 have intervals too"


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_an_interval_of_a_share_contains_it_and_is_within_zero_and_one(events):
    (found,) = frequencies(np.array(events, int), np.full((len(events), 2), 0.5), np.arange(len(events)))
    assert 0 <= found.observed.low <= found.observed.value == np.mean(events) <= found.observed.high <= 1
    assert found.observed.low < found.observed.high


@pytest.mark.parametrize("each", [1, 4], ids=["a window a person", "four"])
def test_intervals_of_nested_predictions_are_root_two_as_wide(each):
    rng = np.random.default_rng(1)
    p_N = rng.uniform(0.3, 0.7, 400)
    y, units = (rng.random(400) < p_N).astype(int), np.repeat(np.arange(400 // each), each)
    p_NK = np.stack([1 - p_N, p_N], axis=1)
    fixed, wider = (frequencies(y, p_NK, units, cross_validated=nested) for nested in (False, True))
    for one, other in zip(fixed, wider, strict=True):
        ratio = (other.observed.high - other.observed.low) / (one.observed.high - one.observed.low)
        assert ratio == pytest.approx(CROSS_VALIDATED, rel=0.05) and one.observed.value == other.observed.value


def test_three_classes_are_judged_by_the_most_probable():
    p, y, subjects, _ = overconfident(n_subjects=20, k=3)
    found = reliability_of(members(p, y, subjects), p)
    assert min(each.predicted for each in found.bins) > 1 / 3
    assert found.calibration_error is not None and found.calibration_error.value < found.error_before.value


def regression(seed: int, spread: float, n: int = 60) -> tuple[MemberPredictions, np.ndarray]:
    rng = np.random.default_rng(seed)
    subjects = np.repeat([f"s{i:03d}" for i in range(n)], 10)
    y = rng.normal(size=len(subjects))
    predicted = (y + rng.normal(size=len(y)) + spread * np.repeat(rng.normal(size=n), 10))[:, None]
    zeros = np.zeros(len(y), np.int64)
    return MemberPredictions(
        ["a"], predicted[None], y, subjects, zeros, np.arange(len(y)), "nrmse", "regression"
    ), predicted


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_intervals_of_values_contain_what_they_promise(spread):
    like, predicted = regression(0, spread)
    found = reliability_of(like, predicted)
    assert [each.level for each in found.coverage] == [0.5, 0.8, 0.9, 0.95]
    for each in found.coverage:
        assert each.observed.low <= each.level <= each.observed.high
        assert each.observed.value == pytest.approx(each.level, abs=0.05)
    widths = [each.width for each in found.coverage]
    assert widths == sorted(widths) and widths[0] > 0


def test_the_width_comes_from_other_people():
    """Errors of one person that are a hundred times larger are outside, as the others do not show them."""
    like, predicted = regression(1, 0.0)
    odd = like.subjects == "s007"
    predicted = predicted.copy()
    predicted[odd] += 100.0
    found = reliability_of(replace(like, predictions=predicted[None]), predicted)
    assert found.coverage[-1].observed.value < 0.95


def test_a_conformal_width_covers_a_new_error_as_promised():
    rng = np.random.default_rng(0)
    inside = [rng.exponential() <= conformal_half_width(rng.exponential(size=19), 0.9) for _ in range(4000)]
    assert np.mean(inside) == pytest.approx(0.9, abs=0.015)
    assert conformal_half_width(np.array([3.0, 1.0]), 0.95) == 3.0


def test_errors_of_repeats_do_not_narrow_intervals():
    error = np.random.default_rng(0).random(20)
    for level in (0.5, 0.9, 0.95):
        assert conformal_half_width(np.tile(error, 3), level, 3) == conformal_half_width(error, level)
    assert conformal_half_width(np.tile(error, 3), 0.93) < conformal_half_width(error, 0.93)
