"""A stretch that is preprocessed while it comes has the samples of one that is read as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.data.live_reader import LiveReader
from raypipe.data.piece_reader import PieceReader
from raypipe.recordings.channels import EegChannels
from raypipe.recordings.live import Chunk, LiveSignal
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import Channel
from tests.support.streams import plan_of

NAMES = ("A", "B", "C")


def readers(plan, rate):
    signal = LiveSignal("x", [Channel(name, rate, "mV") for name in NAMES])
    channels = EegChannels(NAMES, (0, 1, 2), (rate,) * 3, (1e-3,) * 3, {})
    return signal, PieceReader(Recording(Path("x"), Path(), ""), signal, channels, [0, 1, 2], plan)


def whole(plan, x_CT, rate):
    signal, reader = readers(plan, rate)
    signal.add(Chunk(x_CT, np.zeros(x_CT.shape[1])))
    return reader.read(0, 0, int(x_CT.shape[1] / rate * plan.sfreq + 1e-6))


def growing(plan, x_CT, rate, sizes, step):
    """Read in steps while samples come in chunks of these sizes, and forget what was read."""
    signal, pieces = readers(plan, rate)
    reader = LiveReader(signal, pieces, plan)
    parts, n_read, start, turn = [], 0, 0, 0
    while start < x_CT.shape[1]:
        part_CT = x_CT[:, start : start + sizes[turn % len(sizes)]]
        signal.add(Chunk(part_CT, np.zeros(part_CT.shape[1])))
        start, turn = start + part_CT.shape[1], turn + 1
        while reader.advance(n_read + step):
            parts.append(reader.read(n_read, n_read + step))
            n_read += step
        reader.forget(n_read)
    n_out = int(x_CT.shape[1] / rate * plan.sfreq + 1e-6)
    reader.finish(n_out)
    return np.concatenate([*parts, reader.read(n_read, n_out)], axis=1)


@given(
    rates=st.sampled_from([(100.0, 100.0), (500.0, 100.0), (128.0, 100.0), (64.0, 100.0), (250.0, 250.0)]),
    steps=st.sampled_from(
        [{}, {"band": (2.0, 30.0)}, {"band": (3.0, 20.0), "notch": (25.0,)}, {"reference": "average"}]
    ),
    sizes=st.lists(st.integers(3, 700), min_size=1, max_size=4),
    step=st.integers(1, 300),
    missing=st.lists(st.integers(0, 4999), max_size=2),
)
@settings(deadline=None, max_examples=25)
def test_samples_are_those_of_the_whole(rates, steps, sizes, step, missing):
    rate, sfreq = rates
    plan = plan_of(channels=("A", "C"), sources=NAMES, sfreq=sfreq, **steps)
    x_CT = np.random.default_rng(step).normal(size=(3, 5000)) + 5.0
    x_CT[1, missing] = np.nan
    x_CT[0, missing[:1]] = 1e31
    expected, found = whole(plan, x_CT, rate), growing(plan, x_CT, rate, sizes, step)
    assert found.shape == expected.shape
    missing_there, missing_here = np.isnan(expected), np.isnan(found)
    # scipy pads its filter with zeros, which make a missing sample of one at the very end of its reach
    assert not (missing_here & ~missing_there).any() and (missing_there & ~missing_here).sum() <= 4 * len(missing)
    known = ~missing_there
    np.testing.assert_allclose(found[known], expected[known], atol=1e-9 * np.nanmax(np.abs(expected)))


def test_chunks_do_not_change_a_bit():
    plan = plan_of(channels=NAMES, sfreq=100.0, band=(2.0, 30.0))
    x_CT = np.random.default_rng(0).normal(size=(3, 6000))
    one, other = (growing(plan, x_CT, 500.0, sizes, 130) for sizes in ([6000], [17, 400]))
    np.testing.assert_array_equal(one, other)


def test_ratios_of_large_numbers_are_read_too():
    plan = plan_of(channels=NAMES, sfreq=100.0)
    x_CT = np.random.default_rng(0).normal(size=(3, 3000))
    expected, found = whole(plan, x_CT, 100.3), growing(plan, x_CT, 100.3, [200], 100)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_memory_does_not_grow():
    plan = plan_of(channels=NAMES, sfreq=100.0, band=(2.0, 30.0))
    signal, pieces = readers(plan, 500.0)
    reader = LiveReader(signal, pieces, plan)
    for _ in range(400):
        signal.add(Chunk(np.zeros((3, 100)), np.zeros(100)))
        reader.advance(reader.n_times + 20)
        reader.forget(reader.n_times - 5)
    assert signal._buffer_XT.shape[1] < 10_000 and reader._out._buffer_XT.shape[1] < 2000
