"""Power spectra of groups of windows, from a bounded sample that is spread over people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raypipe.core.bootstrap import MIN_SUBJECTS
from raypipe.data.window_store import WindowStore

MAX_PEOPLE = 40
"""People of a group that are drawn at most."""
WINDOWS_EACH = 8
"""Windows of a person and group that are drawn at most."""
MAX_VALUES = 1 << 24
"""Samples over channels that are read at most; fewer windows are drawn where they are larger."""
SEGMENT_SECONDS = 2.0
"""Length of the segments of Welch's method, or of the window where that is shorter."""
MAX_FREQUENCY = 60.0
"""Highest frequency of a spectrum (Hz)."""
PASSED = 0.4
"""Highest frequency as a share of the sampling rate; above it, filters against aliasing remove power."""

Floats = NDArray[np.float64]


class Spectrum(NamedTuple):
    """Power by frequency of each group, in dB relative to one squared unit of the samples per Hz."""

    frequencies: Floats
    """(F,), Hz."""
    mean: Floats
    """(G, F) mean over people."""
    low: Floats
    """(G, F) of the 95 % interval over people (t distribution), as is `high`; NaN for a group of too few."""
    high: Floats


class Spectra(NamedTuple):
    """Spectra of groups of windows."""

    all_channels: Spectrum
    """Of the power averaged over channels."""
    channel: str
    """Channel whose spectra differ most between two groups; empty for a single group."""
    one_channel: Spectrum
    people: list[int]
    """(G,) people in the sample."""
    windows: int
    """In the sample."""
    peak: tuple[float, float, int, int]
    """Frequency (Hz) and size (dB) of the largest difference in `one_channel`, and the groups with more and less."""


def group_spectra(windows: WindowStore, groups: Sequence[NDArray[np.int64]]) -> Spectra:
    """Return the spectra of groups of windows.

    Welch's method (1967, doi:10.1109/TAU.1967.1161901) with Hann windows. Power is averaged over the windows of a
    person first, so that a person counts once.

    Parameters
    ----------
    windows
        The store.
    groups
        Numbers of the windows of each group.
    """
    rng = np.random.default_rng(0)
    each = MAX_VALUES // (windows.n_channels * windows.crop_samples * MAX_PEOPLE * len(groups))
    drawn = [_draw(windows.subjects, index, int(np.clip(each, 1, WINDOWS_EACH)), rng) for index in groups]
    frequencies, power = np.zeros(0), []
    for people in drawn:
        found = [_power(windows, index) for index in people]
        frequencies = found[0][0]
        power.append(np.stack([own_CF for _, own_CF in found]))
    total = [_summary(frequencies, [_decibel(own_PCF.mean(1)) for own_PCF in power])]
    by_channel = [_decibel(own_PCF) for own_PCF in power]
    channel = _most_different(by_channel)
    one = _summary(frequencies, [own_PCF[:, channel] for own_PCF in by_channel])
    several = len(groups) > 1
    return Spectra(
        all_channels=total[0],
        channel=windows.channels[channel] if several else "",
        one_channel=one,
        people=[len(people) for people in drawn],
        windows=sum(len(index) for people in drawn for index in people),
        peak=_peak(one) if several else (np.nan, np.nan, 0, 0),
    )


def _draw(
    subjects: NDArray[np.str_], index: NDArray[np.int64], each: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return the windows that are drawn of each person."""
    names = np.unique(subjects[index])
    if len(names) > MAX_PEOPLE:
        names = np.sort(rng.choice(names, MAX_PEOPLE, replace=False))
    own = [index[subjects[index] == name] for name in names]
    return [np.sort(rng.choice(each_N, min(each, len(each_N)), replace=False)) for each_N in own]


def _power(windows: WindowStore, index: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return frequencies and mean power (channels, F) of windows."""
    from scipy.signal import welch

    x_BCT = windows.gather(index).astype(np.float64)
    length = min(x_BCT.shape[-1], round(SEGMENT_SECONDS * windows.sfreq))
    frequencies, power_BCF = welch(x_BCT, windows.sfreq, nperseg=length)
    kept = (frequencies > 0) & (frequencies <= min(MAX_FREQUENCY, PASSED * windows.sfreq))
    return frequencies[kept], power_BCF[..., kept].mean(0)


def _decibel(power: Floats) -> Floats:
    """Return power in dB; a channel without any, such as the reference, gets the smallest number."""
    return np.asarray(10 * np.log10(np.maximum(power, np.finfo(np.float32).tiny)))


def _summary(frequencies: Floats, groups: Sequence[Floats]) -> Spectrum:
    """Return mean and interval over people of each group (people, F)."""
    mean = np.stack([own_PF.mean(0) for own_PF in groups])
    half = np.stack([_half_width(own_PF) for own_PF in groups])
    return Spectrum(frequencies, mean, mean - half, mean + half)


def _half_width(own_PF: Floats) -> Floats:
    from scipy.stats import t

    n = len(own_PF)
    if n < MIN_SUBJECTS:
        return np.full(own_PF.shape[1:], np.nan)
    return np.asarray(t.ppf(0.975, n - 1) * own_PF.std(0, ddof=1) / np.sqrt(n))


def _most_different(groups: Sequence[Floats]) -> int:
    """Return the channel whose spectra (people, channels, F) differ most between two groups, in standard errors."""
    mean = np.stack([own_PCF.mean(0) for own_PCF in groups])
    error = np.stack([own_PCF.var(0) / len(own_PCF) for own_PCF in groups]) + 1e-3
    found = np.zeros(mean.shape[1])
    for a in range(len(groups)):
        for b in range(a):
            distance_CF = np.abs(mean[a] - mean[b]) / np.sqrt(error[a] + error[b])
            found = np.maximum(found, distance_CF.mean(-1))
    return int(found.argmax())


def _peak(spectrum: Spectrum) -> tuple[float, float, int, int]:
    range_F = spectrum.mean.max(0) - spectrum.mean.min(0)
    at = int(range_F.argmax())
    most, least = int(spectrum.mean[:, at].argmax()), int(spectrum.mean[:, at].argmin())
    return float(spectrum.frequencies[at]), float(range_F[at]), most, least
