"""Sizes of batches, chances of windows, and scales of targets under them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.training.sampling import draw_chances, even_batches, target_scale, weighted_median

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(st.integers(2, 500), st.integers(2, 70), st.integers(2, 6))
def test_batches_hold_all_windows_and_none_is_small(n, size, least):
    sizes = even_batches(n, size, least)
    assert sum(sizes) == n
    assert min(sizes) >= min(n, size, least)
    assert max(sizes) <= size + least  # more than `size` only where halves would be too small
    assert all(one == size for one in sizes[:-2])
    if size >= 2 * least - 1:
        assert max(sizes) <= size and len(sizes) == -(-n // size)
        assert sizes[-2:][0] == size or sizes[-2:][0] - sizes[-1] in (0, 1)


@pytest.mark.parametrize(
    ("n", "size", "wanted"),
    [
        (90, 48, [45, 45]),
        (96, 48, [48, 48]),
        (97, 48, [48, 25, 24]),
        (49, 48, [25, 24]),
        (20, 48, [20]),
        (5, 2, [2, 3]),
    ],
)
def test_the_last_two_batches_share_what_is_left(n, size, wanted):
    assert even_batches(n, size) == wanted


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=50))
def test_subjects_have_the_same_chance(subjects):
    names = np.array(subjects)
    chances = draw_chances(names, "subject")
    for name in set(subjects):
        assert chances[names == name].sum() == pytest.approx(1 / len(set(subjects)))
    np.testing.assert_allclose(draw_chances(names, "window"), 1 / len(names))


def test_target_scales():
    values = np.array([0.0, 1.0, 2.0, 3.0, 100.0])
    assert target_scale(values, "standard") == pytest.approx((values.mean(), values.std()))
    assert target_scale(values, "robust") == pytest.approx((2.0, 1.4826))
    assert target_scale(np.array([1.0, 1.0, 1.0, 5.0]), "robust")[1] == pytest.approx(np.sqrt(3))


@given(VALUES)
def test_a_median_of_equal_weights_is_the_usual_one(values):
    assert weighted_median(np.array(values), np.full(len(values), 0.1)) == pytest.approx(np.median(values))


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 4)), min_size=1, max_size=12))
def test_a_weight_is_a_number_of_copies(pairs):
    values, counts = np.array(pairs, float).T
    chances = counts / counts.sum()
    copies = np.repeat(values, counts.astype(int))
    assert weighted_median(values, chances) == pytest.approx(np.median(copies))
    wanted = (copies.mean(), copies.std() or 1.0)
    assert target_scale(values, "standard", chances) == pytest.approx(wanted, abs=1e-9)
