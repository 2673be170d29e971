"""Simulate the signal of a run on a spherical head: 1/f activity, alpha, theta and responses to button presses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_N_SOURCES = 24
"""Sources of background activity."""
_HYDROCEL_ELECTRODES = 128
"""Electrodes of a HydroCel net without its reference."""


@dataclass(frozen=True)
class Trial:
    """Stimulus and response of a trial."""

    start: float
    """Seconds from the recording's start."""
    stimulus: float
    """Seconds from the recording's start."""
    rt: float
    """Response time that the evoked response follows (s from the stimulus)."""
    recorded_rt: float
    """Response time in events.tsv: `rt`, or an independent one for a null simulation."""
    side: int
    """0 for left, 1 for right."""
    pressed: bool
    """True if the trial has a response."""


def simulate_signal(
    rng: np.random.Generator, trials: Sequence[Trial], factor: float, *, channels: int, sfreq: float, seconds: int
) -> Array:
    """Draw the signal of a run.

    Parameters
    ----------
    trials
        Stimuli and responses.
    factor
        Sets the amplitude of frontal theta: 3 µV times exp(0.7 * factor).
    channels, sfreq, seconds
        Number of channels including the reference, sampling rate (Hz) and duration (s).

    Returns
    -------
    numpy.ndarray
        (channels, sfreq * seconds) in microvolts. The last channel is the flat reference.
    """
    n = seconds * round(sfreq)
    place_C3 = _positions(channels - 1)
    x_CT = _topographies(place_C3, _source_directions(_N_SOURCES), 0.6) @ (7.0 * _pink_noise(rng, _N_SOURCES, n, sfreq))
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
    """Return positions of electrodes on a unit sphere (count, 3): x right, y front, z up.

    128 electrodes have the positions of a HydroCel net. Any other number is spread evenly over the upper part (golden
    angle): the first electrodes of a net are all on the right of the forehead, far from the responses.
    """
    if count == _HYDROCEL_ELECTRODES:
        import mne

        places = mne.channels.make_standard_montage("GSN-HydroCel-128").get_positions()["ch_pos"]
        found_C3 = np.array([places[f"E{number}"] for number in range(1, count + 1)])
        return np.asarray(found_C3 / np.linalg.norm(found_C3, axis=1, keepdims=True))
    index = np.arange(count)
    z = 1 - 1.4 * (index + 0.5) / count
    angle = index * math.pi * (3 - math.sqrt(5))
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)


def _source_directions(count: int) -> Array:
    """Return the directions of the sources of background activity (count, 3), which all subjects share."""
    vector = np.random.default_rng(20).normal(size=(count, 3))
    return np.asarray(vector / np.linalg.norm(vector, axis=1, keepdims=True), dtype=float)


def _topographies(place_C3: Array, source_S3: Array, width: float) -> Array:
    """Return weights of sources at electrodes (C, S): a Gaussian of their distance, with a peak of 1."""
    distance = np.linalg.norm(place_C3[:, None] - source_S3[None], axis=2)
    return np.asarray(np.exp(-((distance / width) ** 2) / 2), dtype=float)


def _pink_noise(rng: np.random.Generator, count: int, n: int, sfreq: float) -> Array:
    """Return noise (count, n) of unit variance, with power 1/f above 1 Hz."""
    frequency = np.fft.rfftfreq(n, 1 / sfreq)
    spectrum = np.fft.rfft(rng.normal(size=(count, n))) / np.sqrt(np.maximum(frequency, 1.0)) * (frequency > 0.3)
    x = np.fft.irfft(spectrum, n)
    return np.asarray(x / x.std(axis=1, keepdims=True), dtype=float)


def _rhythm(rng: np.random.Generator, count: int, n: int, sfreq: float, centre: float) -> Array:
    """Return noise (count, n) of unit variance, in a band of about 2 Hz around `centre`."""
    frequency = np.fft.rfftfreq(n, 1 / sfreq)
    x = np.fft.irfft(np.fft.rfft(rng.normal(size=(count, n))) * np.exp(-((frequency - centre) ** 2) / 2), n)
    return np.asarray(x / x.std(axis=1, keepdims=True), dtype=float)
