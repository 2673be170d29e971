"""Windows are at their events, whatever the sampling rate is, and however pieces are read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from raypipe.data.target_base import Segment, Segments
from raypipe.data.windower import place_windows, read_windows
from raypipe.recordings.channels import EegChannels
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import Channel, Signal, Span
from tests.support.streams import plan_of

LENGTH = 3600.0
"""Seconds."""
EVENTS = (0.5, 10.0, 700.25, 1800.0, 3599.0)
RATES = [
    (500.0, 250.0),
    (499.987, 250.0),
    (499.987, 500.0),
    (1e6 / 1953, 128.0),
    (250.01, 250.0),
    (249.98, 250.0),
]


class Bumps(Signal):
    """A signal, one channel for each rate, that is computed where it is read: 100 uV at 0.5 s after each event."""

    path, unit_source, spans = Path("x"), "format", (Span(0.0, LENGTH),)

    def __init__(self, rates):
        self.channels = tuple(Channel(f"C{n}", rate, "uV") for n, rate in enumerate(rates))
        self.rates = rates

    def read(self, picks, span, begin, stop):
        times_CT = np.arange(begin, stop) / np.array([[self.rates[pick]] for pick in picks])
        return sum(100 * np.exp(-0.5 * ((times_CT - event - 0.5) / 0.02) ** 2) for event in EVENTS)


def windows_of(rates, sfreq, onsets=EVENTS, **options):
    names = tuple(f"C{n}" for n in range(len(rates)))
    plan = plan_of(channels=names, sfreq=sfreq)
    channels = EegChannels(names, tuple(range(len(rates))), rates, (1e-6,) * len(rates), {})
    recording = Recording(Path("x"), Path(), "A")
    opened = SimpleNamespace(
        recording=recording, signal=Bumps(rates), channels=channels, sources=lambda _: list(range(len(rates)))
    )
    target = SimpleNamespace(event_locked=True, segment=lambda *_: Segments([Segment(onset) for onset in onsets]))
    windows, left_out = place_windows(opened, target, plan, None)
    assert not left_out
    groups = list(read_windows(opened, windows, plan, **options))
    return [window for group, _ in groups for window in group], np.concatenate([x_NCT for _, x_NCT in groups])


@pytest.mark.parametrize(("rate", "sfreq"), RATES)
def test_windows_are_at_their_events_after_an_hour(rate, sfreq):
    windows, x_NCT = windows_of((rate,), sfreq)
    assert [window.onset for window in windows] == list(EVENTS)
    assert np.abs(x_NCT[:, 0].argmax(axis=1) / sfreq - 0.5).max() <= 1.01 / sfreq


def test_channels_of_odd_and_even_rates_stay_together():
    _, x_NCT = windows_of((500.0, 499.987, 250.01), 250.0)
    assert np.abs(x_NCT.argmax(axis=2) / 250 - 0.5).max() <= 1.01 / 250


@pytest.mark.parametrize("rate", [500.0, 499.987, 250.01])
def test_windows_do_not_depend_on_the_pieces_that_are_read(rate):
    onsets = np.arange(0, LENGTH / 20, 0.5).tolist()
    windows, x_NCT = windows_of((rate,), 250.0, onsets)
    for options, chosen in (({"piece_bytes": 8 * 1000}, onsets), ({}, onsets[7::29])):
        some, other_NCT = windows_of((rate,), 250.0, chosen, **options)
        places = [onsets.index(window.onset) for window in some]
        assert len(windows) == len(onsets)
        np.testing.assert_allclose(other_NCT, x_NCT[places], atol=1e-3)
