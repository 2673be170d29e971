from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raypipe.training.dropout import DropoutSampler, _runs

CPU = torch.device("cpu")
RATES = st.floats(0.01, 0.95)
PLANS = st.lists(st.tuples(st.integers(1, 50), st.sampled_from([0.1, 0.25, 0.5])), min_size=1, max_size=6)


@given(PLANS, st.integers(0, 2**63 - 1))
def test_masks_scale_up_what_they_keep_part_by_part(plan, seed):
    scale_M = DropoutSampler(seed, CPU).draw(plan)
    assert scale_M.dtype == torch.float32 and len(scale_M) == sum(size for size, _ in plan)
    for part, (_, rate) in zip(scale_M.split([size for size, _ in plan]), plan, strict=True):
        assert set(part.tolist()) <= {0.0, float(np.float32(1.0 / (1.0 - rate)))}


@given(RATES, RATES)
def test_rates_are_met(one, other):
    """Within six standard errors. The mean of the masks is one, so that evaluation scales nothing."""
    n = 40_000
    for part, rate in zip(DropoutSampler(7, CPU).draw([(n, one), (n, other)]).split(n), (one, other), strict=True):
        error = np.sqrt(rate * (1 - rate) / n)
        assert float((part == 0).double().mean()) == pytest.approx(rate, abs=6 * error + 2**-16)
        assert float(part.double().mean()) == pytest.approx(1.0, abs=(6 * error + 2**-16) / (1 - rate))


def test_neighbouring_values_are_dropped_independently():
    dropped = (DropoutSampler(3, CPU).draw([(80_000, 0.5)]) == 0).double() - 0.5
    for lag in (1, 2, 3, 4, 8):  # four values share one draw of 64 bits
        assert abs(float((dropped[lag:] * dropped[:-lag]).mean())) < 6 * 0.25 / np.sqrt(80_000)


@given(PLANS, st.integers(0, 2**63 - 2))
def test_masks_follow_from_the_seed(plan, seed):
    def drawn(seed, times=3):
        source = DropoutSampler(seed, CPU)
        return [source.draw(plan).clone() for _ in range(times)]

    for one, again in zip(drawn(seed), drawn(seed), strict=True):
        assert one.equal(again)
    big = [(500, 0.5)]
    assert not DropoutSampler(seed, CPU).draw(big).equal(DropoutSampler(seed + 1, CPU).draw(big))


@given(PLANS)
def test_parts_come_in_the_order_of_the_plan(plan):
    """Joining neighbours of one rate changes nothing: the same bits are compared with the same bounds."""
    runs = _runs(plan)
    assert all(a[1] != b[1] for a, b in pairwise(runs))
    apart = [(1, rate) for size, rate in plan for _ in range(size)]
    assert DropoutSampler(1, CPU).draw(plan).equal(DropoutSampler(1, CPU).draw(apart))


def test_a_step_draws_new_masks_over_the_old_ones():
    source, plan = DropoutSampler(0, CPU), [(400, 0.5)]
    first = source.draw(plan)
    before = first.clone()
    second = source.draw(plan)
    assert second.data_ptr() == first.data_ptr()
    assert not second.equal(before)
    other = source.draw([(100, 0.5)])  # a batch of another size: in memory of its own
    kept = second.clone()
    assert other.data_ptr() != second.data_ptr() and second.equal(kept)


def test_nothing_is_drawn_where_nothing_is_dropped():
    source = DropoutSampler(5, CPU)
    assert source.draw([]) is None
    assert source.draw([(400, 0.5)]).equal(DropoutSampler(5, CPU).draw([(400, 0.5)]))
