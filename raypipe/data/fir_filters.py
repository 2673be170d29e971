"""Zero-phase FIR filters of MNE's design, each made once and applied to several channels at a time.

The numbers are those of `mne.filter.filter_data` and `mne.filter.notch_filter` to rounding, which design the filter at
every call.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CHANNELS_AT_A_TIME = 8
"""Channels whose blocks are transformed together: more of them leave the processor's cache."""
NOTCH_TRANSITION = 0.5
"""Hz on either side of a stop band: half of the ``trans_bandwidth`` that MNE takes."""
BLOCK_FILTERS = 4
"""Length of a block, at least, in lengths of the filter."""


@lru_cache(maxsize=64)
def design_band(rate: float, low: float, high: float) -> Floats:
    """Return the taps of a band-pass (Hz) for a sampling rate (Hz); a lower edge of 0 makes it a low-pass."""
    from mne.filter import create_filter

    return np.asarray(create_filter(None, rate, low or None, high, verbose="ERROR"), np.float64)


@lru_cache(maxsize=64)
def design_notch(rate: float, *centres: float) -> Floats:
    """Return the taps that remove frequencies (Hz) at a sampling rate (Hz).

    Each stop band is 1/200 of its centre wide, with transitions of 0.5 Hz on both sides: the defaults of
    `mne.filter.notch_filter`. The filter is 6.6 s long.
    """
    from mne.filter import create_filter

    reach_N = [centre / 400 + NOTCH_TRANSITION for centre in centres]
    highs = [centre + reach for centre, reach in zip(centres, reach_N, strict=True)]
    lows = [centre - reach for centre, reach in zip(centres, reach_N, strict=True)]
    taps = create_filter(
        None,
        rate,
        highs,
        lows,
        l_trans_bandwidth=NOTCH_TRANSITION,
        h_trans_bandwidth=NOTCH_TRANSITION,
        verbose="ERROR",
    )
    return np.asarray(taps, np.float64)


def apply_filter(x_CT: Floats, taps: Floats) -> Floats:
    """Filter each channel by overlap-save (Oppenheim & Schafer, Discrete-Time Signal Processing, section 8.7).

    Parameters
    ----------
    x_CT
        (C, T) samples. Beyond its ends the signal is continued by odd reflection, and by zeros beyond that.
    taps
        Symmetric filter of odd length; the result has no delay.
    """
    n_taps, n_times = len(taps), x_CT.shape[1]
    n_block = 1 << (BLOCK_FILTERS * n_taps - 1).bit_length()
    step = n_block - n_taps + 1
    n_blocks = -(-n_times // step)
    response = scipy.fft.rfft(taps, n_block)
    out_CT = np.empty_like(x_CT)
    for first in range(0, len(x_CT), CHANNELS_AT_A_TIME):
        some = slice(first, first + CHANNELS_AT_A_TIME)
        padded_CX = _continued(x_CT[some], n_taps // 2, (n_blocks - 1) * step + n_block)
        blocks_CBN = np.lib.stride_tricks.sliding_window_view(padded_CX, n_block, axis=1)[:, ::step]
        filtered_CBN = scipy.fft.irfft(scipy.fft.rfft(blocks_CBN) * response, n_block)[..., n_taps - 1 :]
        out_CT[some] = filtered_CBN.reshape(len(padded_CX), -1)[:, :n_times]
    return out_CT


def _continued(x_CT: Floats, n_edge: int, length: int) -> Floats:
    """Return a signal with `n_edge` samples more before it and as many as `length` needs after it."""
    n_times = x_CT.shape[1]
    n = min(n_edge, n_times - 1)
    out_CX = np.zeros((len(x_CT), length))
    out_CX[:, n_edge - n : n_edge] = 2 * x_CT[:, :1] - x_CT[:, n:0:-1]
    out_CX[:, n_edge : n_edge + n_times] = x_CT
    after = out_CX[:, n_edge + n_times : n_edge + n_times + n]
    after[:] = (2 * x_CT[:, -1:] - x_CT[:, -2 : -n - 2 : -1])[:, : after.shape[1]]
    return out_CX
