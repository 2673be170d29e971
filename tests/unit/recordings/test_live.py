"""Samples that come while they are recorded: where some were lost, and reading the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.recordings.live import JITTER, LAG, Chunk, LiveSignal, StampCheck, split_at
from raypipe.recordings.signal import Channel, UnreadableRecordingError

RATE = 100.0


def losses(stamps_T, sizes=(10**9,), rate=RATE, jitter=JITTER):
    """Return the places before which samples were lost, of all samples, which come in chunks of these sizes."""
    check, found, start, turn = StampCheck(rate, jitter), [], 0, 0
    while start < len(stamps_T):
        size = sizes[turn % len(sizes)]
        found += [start + place for place in check.losses(stamps_T[start : start + size])]
        start, turn = start + size, turn + 1
    return found


def stamps(n, rate=RATE, start=1234.5):
    return start + np.arange(n) / rate


def test_regular_stamps_have_no_loss():
    assert losses(stamps(3000)) == []
    assert losses(np.empty(0)) == []


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    places=st.lists(st.integers(1, 2999), max_size=4, unique=True),
    seconds=st.floats(0.06, 100.0),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=60)
def test_losses_are_where_stamps_jump_in_whatever_chunks_they_come(sizes, places, seconds, seed):
    stamps_T = stamps(3000) + np.random.default_rng(seed).uniform(-0.002, 0.002, 3000)
    for place in places:
        stamps_T[place:] += seconds
    assert losses(stamps_T, sizes) == sorted(places)


@pytest.mark.parametrize("seconds", [0.3, -0.3, np.nan])
def test_stamps_may_jump_back_or_be_none(seconds):
    stamps_T = stamps(100)
    stamps_T[60:] += seconds
    assert losses(stamps_T)[0] == 60


def test_stamps_may_be_off_up_to_the_limit():
    blocks_T = stamps(3000)[np.arange(3000) // 4 * 4]  # a driver that stamps blocks of 4 samples, 30 ms
    assert losses(blocks_T) == []
    assert len(losses(blocks_T, jitter=0.02)) > 100
    assert losses(stamps(10_000, RATE * (1 + 0.9 * JITTER / LAG))) == []


def test_many_small_losses_are_one_in_the_end():
    lossy_T = stamps(3300)[np.arange(3300) % 33 != 0]  # one sample of 33
    found = losses(lossy_T)
    assert 2 <= len(found) <= 100
    assert losses(stamps(10_000, RATE * (1 + 3 * JITTER / LAG)))


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=20), keep=st.integers(0, 500))
@settings(deadline=None, max_examples=60)
def test_samples_are_read_as_they_came(sizes, keep):
    signal = LiveSignal("x", [Channel("A", RATE, "uV"), Channel("B", RATE, "uV")])
    total = sum(sizes)
    x_CT, stamps_T = np.random.default_rng(0).normal(size=(2, total)), stamps(total)
    for size in sizes:
        part = slice(signal.n_times, signal.n_times + size)
        signal.add(Chunk(x_CT[:, part], stamps_T[part]))
        first = max(0, signal.n_times - keep)
        signal.forget(first)
        np.testing.assert_array_equal(signal.read([1, 0], 0, first, signal.n_times), x_CT[::-1, first : signal.n_times])
        assert signal.spans[0].duration == signal.n_times / RATE
        if first < signal.n_times:
            assert signal.stamp(first + 0.25) == pytest.approx(stamps_T[first] + 0.25 / RATE)
    with pytest.raises(UnreadableRecordingError, match="are not held"):
        signal.read([0], 0, total, total + 1)
    if keep < total:
        with pytest.raises(UnreadableRecordingError, match="are not held"):
            signal.read([0], 0, total - keep - 1, total)


def test_memory_does_not_grow_where_samples_are_forgotten():
    signal = LiveSignal("x", [Channel("A", RATE, "uV")])
    for _ in range(2000):
        signal.add(Chunk(np.zeros((1, 50)), np.zeros(50)))
        signal.forget(signal.n_times - 200)
    assert signal._buffer_XT.shape[1] < 2000


def test_samples_are_split_where_some_were_lost():
    whole = Chunk(np.arange(10.0)[None], np.arange(10.0))
    assert [(part.stamps.tolist(), part.follows_loss) for part in split_at(whole, [])] == [(list(range(10)), False)]
    parts = split_at(whole, [0, 4])
    assert [(part.samples[0].tolist(), part.follows_loss) for part in parts] == [
        ([0, 1, 2, 3], True),
        ([4, 5, 6, 7, 8, 9], True),
    ]
    assert [part.follows_loss for part in split_at(whole._replace(follows_loss=True), [4])] == [True, True]
    nothing = split_at(Chunk(np.empty((1, 0)), np.empty(0), True), [])
    assert [len(part.stamps) for part in nothing] == [0] and nothing[0].follows_loss
