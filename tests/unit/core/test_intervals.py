from __future__ import annotations

import numpy as np
import pytest

from raypipe.core.intervals import Interval, Samples, contain_zero, interval_of, sign_flip_chance


def samples_of(part_BS: np.ndarray, n: int = 1000) -> list[Samples]:
    """Return the samples of means over subjects, whose parts are given."""
    s = part_BS.shape[1]
    counts_RS = np.random.default_rng(0).multinomial(s, np.full(s, 1 / s), size=n)
    left_out_BS = (part_BS.sum(1, keepdims=True) - part_BS) / (s - 1)
    means_BR = part_BS @ counts_RS.T / s
    rows = zip(part_BS, left_out_BS, means_BR, strict=True)
    return [Samples(float(part_S.mean()), left_S, drawn_R, counts_RS) for part_S, left_S, drawn_R in rows]


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("s", [6, 12])
def test_few_claims_are_wrong_with_few_subjects(s: int, skewed: bool) -> None:
    """Of differences that are 0 in truth, 2.5 % are called better and 2.5 % worse; percentiles claim twice as many."""
    rng = np.random.default_rng(s)
    part_BS = rng.gamma(2.0, 1.0, (2000, s)) - 2.0 if skewed else rng.normal(size=(2000, s))
    found = [(each, interval_of(each)) for each in samples_of(part_BS)]
    tested = [contain_zero(interval, sign_flip_chance(each)) for each, interval in found]
    plain = [np.quantile(each.resampled_R, [0.025, 0.975]) for each, _ in found]
    above, below = np.mean([i.low > 0 for i in tested]), np.mean([i.high < 0 for i in tested])
    assert np.mean([(low > 0) or (high < 0) for low, high in plain]) > 0.07
    assert above <= 0.032 and below <= (0.055 if skewed else 0.032)  # three standard errors are 0.01
    assert np.mean([i.low <= 0 <= i.high for _, i in found]) > (0.93 if skewed else 0.945)


def test_a_difference_contains_0_unless_the_sign_flip_test_rejects_it() -> None:
    one_sided = samples_of(np.array([[1.0, 1.1, 0.9, 1.0, 1.0], [1.0, 1.1, 0.9, 1.0, 1.0]]))[0]
    assert interval_of(one_sided).low > 0.5
    assert sign_flip_chance(one_sided) == pytest.approx(2 / 2**5)
    assert contain_zero(interval_of(one_sided), sign_flip_chance(one_sided)).low == 0.0
    six = samples_of(np.array([[1.0, 1.1, 0.9, 1.0, 1.0, 1.0]]))[0]
    assert contain_zero(interval_of(six), sign_flip_chance(six)).low > 0.5
    many = samples_of(np.random.default_rng(0).normal(0.4, 1.0, (1, 60)))[0]
    assert sign_flip_chance(many) == sign_flip_chance(many) < 0.01
    assert np.isnan(contain_zero(Interval(np.nan, np.nan, 0), 1.0).low)
