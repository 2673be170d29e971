"""Sizes of models that follow from the sampling rate and the outputs; this file needs nothing but Python.

Submissions contain it unchanged.
"""

from __future__ import annotations

import math

KERNELS = {"rate": (25, 75, 15), "paper": (25, 75, 15), "short": (25, 25, 15)}
"""Temporal kernel, pool and stride of Conformer and ShallowFBCSPNet in samples at 250 Hz."""
SEPARABLE_KERNEL, LAST_POOL = 16, 8
"""Samples of EEGNet's pooled signal: half a second, and a quarter, at the paper's 32 Hz."""


def kernel_sizes(sfreq: float, kernels: str = "rate") -> tuple[int, int, int]:
    """Return the lengths of the temporal kernel, the pool and its stride in samples.

    Parameters
    ----------
    sfreq
        Sampling rate in Hz.
    kernels
        `paper`: 25, 75 and 15 samples at any rate; `rate`: the durations that those have at the paper's 250 Hz
        (10, 30 and 6 samples at 100 Hz); `short`: as `rate` with a third of the pool (10, 10 and 6), for targets that
        are a time within the window.

    Raises
    ------
    ValueError
        `kernels` is none of these.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)} (given {kernels!r})")
    scale = 1.0 if kernels == "paper" else sfreq / 250.0
    kernel, pool, stride = (max(1, math.floor(length * scale + 0.5)) for length in KERNELS[kernels])
    return kernel, pool, stride


def fitting_kernels(n_times: int, sfreq: float, kernels: str) -> str:
    """Return `kernels`, or the first of `rate` and `short` that windows of `n_times` samples are long enough for.

    Where no kernels fit, it is `short`.
    """
    for name in (kernels, "rate"):
        kernel, pool, _ = kernel_sizes(sfreq, name)
        if n_times >= kernel + pool - 1:
            return name
    return "short"


def eegnet_sizes(sfreq: float, kernels: str = "rate", n_times: int | None = None) -> tuple[int, int]:
    """Return the lengths of the temporal kernel and of the first pool in samples.

    Parameters
    ----------
    sfreq
        Sampling rate in Hz.
    kernels
        `paper`: 64 and 4 samples at any rate; `rate`: the durations that those have at the paper's 128 Hz (50 and 3
        samples at 100 Hz).
    n_times
        Samples of the windows, which the kernel is no longer than; None for windows of any length.
    """
    scale = 1.0 if kernels == "paper" else sfreq / 128.0
    kernel, pool = (max(1, math.floor(length * scale + 0.5)) for length in (64, 4))
    return (kernel if n_times is None else min(kernel, n_times)), pool


def shortest_window(kernel: int, pool: int) -> int:
    """Return the samples that a window of EEGNet needs."""
    pooled = LAST_POOL - 1 + SEPARABLE_KERNEL % 2  # the separable convolution adds a sample if its kernel is even
    return max(kernel, pooled * pool)


def n_groups(n_outputs: int) -> int:
    """Return the number of groups of windows that have prototypes: the classes, or thirds of the targets.

    Of K values there are K groups of as many windows each, by the mean of the standardised values: two are halves.
    """
    return n_outputs if n_outputs > 1 else 3
