"""The signal of a simulated run: 1/f activity, alpha and theta, and what a press evokes, on a spherical head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SOURCES = 24
"""Of background activity."""
_NET = 128
"""Electrodes of a HydroCel net beside its reference."""


@dataclass(frozen=True)
class Trial:
    """What was shown and pressed in a trial, in seconds from the recording's start."""

    start: float
    stimulus: float
    rt: float
    """What the evoked response follows (s from the stimulus)."""
    shown_rt: float
    """What events.tsv says: `rt`, or a time drawn apart from it where the link is severed."""
    side: int
    pressed: bool


def signal(
    rng: np.random.Generator, trials: Sequence[Trial], factor: float, *, channels: int, sfreq: float, seconds: int
) -> Array:
    """Draw the signal of a run.

    Parameters
    ----------
    trials
        What was shown and pressed when.
    factor
        Sets the power of frontal theta: exp(0.7 * factor) times the amplitude.

    Returns
    -------
    (channels, sfreq * seconds) in microvolts; the last channel is the flat reference.
    """
    n = seconds * round(sfreq)
    place_C3 = _positions(channels - 1)
    x_CT = _topographies(place_C3, _directions(_SOURCES), 0.6) @ (7.0 * _coloured(rng, _SOURCES, n, sfreq))
    alpha_ST = _rhythm(rng, 3, n, sfreq, 10.0) * rng.uniform(3, 8)
    x_CT += _topographies(place_C3, np.array([[-0.4, -0.9, 0.2], [0.0, -1.0, 0.2], [0.4, -0.9, 0.2]]), 0.5) @ alpha_ST
    theta_ST = _rhythm(rng, 1, n, sfreq, 6.0) * 3.0 * math.exp(0.7 * factor)
    x_CT += _topographies(place_C3, np.array([[0.0, 0.6, 0.8]]), 0.5) @ theta_ST
    evoked_ET = np.zeros((3, n))
    time = np.arange(n) / sfreq
    for trial in trials:
        if not trial.pressed:
            continue
        t = time - trial.stimulus - trial.rt
        gain = rng.uniform(0.7, 1.3)
        rise, fall = np.exp(-((t / 0.25) ** 2) / 2), np.exp(-((t / 0.12) ** 2) / 2)
        evoked_ET[0] += gain * 18.0 * np.where(t < 0, rise, fall)
        # The motor potential peaks just before the press, over the hemisphere opposite to the hand.
        evoked_ET[2 - trial.side] -= gain * 10.0 * np.exp(-(((t + 0.06) / 0.1) ** 2) / 2)
    x_CT += _topographies(place_C3, np.array([[0.0, -0.3, 0.95], [-0.6, 0.0, 0.8], [0.6, 0.0, 0.8]]), 0.45) @ evoked_ET
    x_CT += rng.normal(0, 2.0, size=x_CT.shape)
    return np.vstack([x_CT, np.zeros((1, n))])


def _positions(count: int) -> Array:
    """Electrodes on a unit sphere; x right, y front, z up.

    All of a HydroCel net sit where their names say. Fewer are spread over the upper part by the golden angle: a net's
    first ones lie together on the right of the forehead, where little is to be seen of a response.
    """
    if count == _NET:
        import mne

        places = mne.channels.make_standard_montage("GSN-HydroCel-128").get_positions()["ch_pos"]
        found_C3 = np.array([places[f"E{number}"] for number in range(1, count + 1)])
        return np.asarray(found_C3 / np.linalg.norm(found_C3, axis=1, keepdims=True))
    index = np.arange(count)
    z = 1 - 1.4 * (index + 0.5) / count
    angle = index * math.pi * (3 - math.sqrt(5))
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)


def _directions(count: int) -> Array:
    """Where the sources of background activity lie: the same head for everyone."""
    vector = np.random.default_rng(20).normal(size=(count, 3))
    return np.asarray(vector / np.linalg.norm(vector, axis=1, keepdims=True), dtype=float)


def _topographies(place_C3: Array, source_S3: Array, width: float) -> Array:
    """(C, S): Gaussian fall-off with the distance from each source, peak 1."""
    distance = np.linalg.norm(place_C3[:, None] - source_S3[None], axis=2)
    return np.asarray(np.exp(-((distance / width) ** 2) / 2), dtype=float)


def _coloured(rng: np.random.Generator, count: int, n: int, sfreq: float) -> Array:
    """Noise of unit variance with power 1/f above 1 Hz, (count, n)."""
    frequency = np.fft.rfftfreq(n, 1 / sfreq)
    spectrum = np.fft.rfft(rng.normal(size=(count, n))) / np.sqrt(np.maximum(frequency, 1.0)) * (frequency > 0.3)
    x = np.fft.irfft(spectrum, n)
    return np.asarray(x / x.std(axis=1, keepdims=True), dtype=float)


def _rhythm(rng: np.random.Generator, count: int, n: int, sfreq: float, centre: float) -> Array:
    """Noise of unit variance in a band of about 2 Hz around `centre`, (count, n)."""
    frequency = np.fft.rfftfreq(n, 1 / sfreq)
    x = np.fft.irfft(np.fft.rfft(rng.normal(size=(count, n))) * np.exp(-((frequency - centre) ** 2) / 2), n)
    return np.asarray(x / x.std(axis=1, keepdims=True), dtype=float)
