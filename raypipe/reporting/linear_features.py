"""Features of windows for linear baselines: log band power, log-covariance, and time courses of spatial components."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raypipe.data.window_store import WindowStore

BANDS = ((1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 45.0))
"""Hz: delta, theta, alpha, beta, gamma."""
MAX_COMPONENTS = 16
COURSE_RATE = 20.0
"""Samples of a time course per second."""
MAX_COURSE_SECONDS = 4.0
"""Longest window that has time courses: longer ones are not cut at events."""
_COMPONENT_WINDOWS = 512
"""Approximate number of windows from which spatial components are estimated."""
_BATCH = 256

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def spatial_components(windows: WindowStore, index: Index) -> Array:
    """Return the principal axes (C, K) of the channels over some of these windows."""
    some = index[:: max(1, len(index) // _COMPONENT_WINDOWS)]
    total_CC = np.zeros((windows.n_channels, windows.n_channels))
    for x_NCT in _batches(windows, some):
        total_CC += np.einsum("nct,ndt->cd", x_NCT, x_NCT, optimize=True)
    _, axes = np.linalg.eigh(total_CC)
    return np.asarray(axes[:, ::-1][:, :MAX_COMPONENTS])


def band_power(windows: WindowStore, index: Index) -> Array:
    """Return the log power of each channel in each band (N, C * bands)."""
    frequency = np.fft.rfftfreq(windows.crop_samples, 1 / windows.sfreq)
    inside = [np.flatnonzero((frequency >= low) & (frequency < high)) for low, high in BANDS]
    out = []
    for x_NCT in _batches(windows, index):
        spectrum = np.abs(np.fft.rfft(x_NCT, axis=-1)) ** 2
        out.append(np.concatenate([np.log(spectrum[..., b].mean(-1) + 1e-6) for b in inside if len(b)], axis=1))
    return np.concatenate(out)


def component_features(windows: WindowStore, index: Index, axes_CK: Array) -> dict[str, Array]:
    """Return features of spatial components by name, each (N, features).

    ``log-covariance`` is the upper triangle of the matrix logarithm of the components' covariance. ``time courses`` are
    the components' samples at `COURSE_RATE`, each a mean over its interval; windows longer than `MAX_COURSE_SECONDS`
    have none.
    """
    upper = np.triu_indices(axes_CK.shape[1])
    covariance, courses = [], []
    for x_NCT in _batches(windows, index):
        y_NKT = np.einsum("ck,nct->nkt", axes_CK, x_NCT, optimize=True)
        covariance.append(_log_covariance(y_NKT)[:, upper[0], upper[1]])
        courses.append(_means(y_NKT, max(1, round(windows.sfreq / COURSE_RATE))))
    found = {"log-covariance": np.concatenate(covariance)}
    if windows.crop_samples <= MAX_COURSE_SECONDS * windows.sfreq:
        found["time courses"] = np.concatenate(courses)
    return found


def _log_covariance(y_NKT: Array) -> Array:
    c_NKK = np.einsum("nkt,nlt->nkl", y_NKT, y_NKT, optimize=True) / y_NKT.shape[-1]
    values, vectors = np.linalg.eigh(c_NKK + 1e-3 * np.eye(y_NKT.shape[1]))
    return np.asarray(np.einsum("nka,na,nla->nkl", vectors, np.log(np.maximum(values, 1e-6)), vectors, optimize=True))


def _means(y_NKT: Array, step: int) -> Array:
    """Return the means of `step` samples side by side (N, K * samples); samples that are left over are not used."""
    n = y_NKT.shape[-1] // step
    return np.asarray(y_NKT[..., : n * step].reshape(*y_NKT.shape[:2], n, step).mean(-1).reshape(len(y_NKT), -1))


def _batches(windows: WindowStore, index: Index) -> Iterator[Array]:
    """Yield the crops (N, C, T) of windows, with each channel's mean removed."""
    for start in range(0, len(index), _BATCH):
        x_NCT = windows.gather(index[start : start + _BATCH]).astype(np.float64)
        x_NCT -= x_NCT.mean(-1, keepdims=True)
        yield x_NCT
