"""Extract the spatial and temporal filters at the start of a network, their activation patterns and spectra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

Array = NDArray[np.float32]

_MIN_FFT = 256
"""Minimum length of the Fourier transform in samples, for smooth spectra of short kernels."""


@dataclass(frozen=True)
class Filters:
    """The linear layers at the start of a network."""

    temporal: Array
    """(F, K) kernels of the temporal layer."""
    combined: Array
    """(G, C, K) all linear layers as one: the weight of channel c at sample k in filter g."""
    weight: Array | None
    """(G,) weight of each filter in the next layer; None where the standard deviation of its output is used instead."""


def extract_filters(name: str, tensors: Mapping[str, torch.Tensor]) -> Filters | None:
    """Return the filters of a network.

    Parameters
    ----------
    name
        Name of the network in `ModelConfig`.
    tensors
        State of the network.

    Returns
    -------
    filters
        None for networks that do not start with filters over the channels.
    """
    if name == "conformer":
        temporal_FK = tensors["stem.temporal.weight"][:, 0, 0].float()
        combined_GCK = torch.einsum("gfc,fk->gck", tensors["stem.spatial.weight"][..., 0].float(), temporal_FK)
        weight_G = tensors["batch_norm.weight"].float().abs() * tensors["pointwise.weight"].float().norm(dim=0)
        return Filters(temporal_FK.numpy(), combined_GCK.numpy(), weight_G.numpy())
    if name == "shallow":  # BatchNorm's factor is a constant after the logarithm: the head alone weights a filter
        temporal_FK = tensors["stem.temporal.weight"][:, 0, 0].float()
        combined_GCK = torch.einsum("gfc,fk->gck", tensors["stem.spatial.weight"][..., 0].float(), temporal_FK)
        head_OX = tensors["head.weight"].float()
        weight_G = head_OX.view(len(head_OX), len(combined_GCK), -1).norm(dim=(0, 2))
        return Filters(temporal_FK.numpy(), combined_GCK.numpy(), weight_G.numpy())
    if name == "eegnet":
        temporal_FK = tensors["temporal.weight"][:, 0, 0].float()
        spatial_GC = tensors["spatial.weight"][:, 0, :, 0].float()
        each_GK = temporal_FK.repeat_interleave(len(spatial_GC) // len(temporal_FK), 0)
        weight_G = tensors["spatial_norm.weight"].float().abs() * tensors["depthwise.weight"].float().norm(dim=(1, 2))
        weight_G = weight_G * tensors["pointwise.weight"].float().norm(dim=(0, 2))
        return Filters(temporal_FK.numpy(), (spatial_GC[:, :, None] * each_GK[:, None]).numpy(), weight_G.numpy())
    if name == "tcn":
        temporal_FK, spatial_FC = tensors["temporal.weight"][:, 0].float(), tensors["spatial.weight"][..., 0].float()
        return Filters(temporal_FK.numpy(), (spatial_FC[:, :, None] * temporal_FK[:, None]).numpy(), None)
    return None


def activation_patterns(x_BCT: Array, combined_GCK: Array) -> tuple[Array, Array]:
    """Return activation patterns of filters over channels and time, and the standard deviations of their outputs.

    Parameters
    ----------
    x_BCT
        Windows, normalised as the network does it.
    combined_GCK
        See `Filters`.

    Returns
    -------
    pattern_GCK, sd_G
        Covariance of the filter's output with channel c at sample k of the kernel: the covariance of the data, channels
        and lags, times the filter (Haufe et al. 2014, doi:10.1016/j.neuroimage.2013.10.067, one filter at a time).
    """
    x = torch.from_numpy(np.ascontiguousarray(x_BCT, np.float32))
    w = torch.from_numpy(np.ascontiguousarray(combined_GCK, np.float32))
    x = x - x.mean((0, 2), keepdim=True)
    y_BGT = F.conv1d(x, w)
    y_BGT = y_BGT - y_BGT.mean((0, 2), keepdim=True)
    length, count = y_BGT.shape[-1], len(x) * y_BGT.shape[-1]
    taps = [torch.einsum("bct,bgt->gc", x[..., k : k + length], y_BGT) / count for k in range(w.shape[-1])]
    return torch.stack(taps, -1).numpy(), y_BGT.std((0, 2)).numpy()


def strongest_component(a_GCK: Array) -> tuple[Array, Array, Array]:
    """Return the first singular component of each matrix over channels and time; its largest channel is positive.

    Returns
    -------
    channels_GC, times_GK, share_G
        Singular vectors of length one, and the component's share of the squares.
    """
    u, s, vh = np.linalg.svd(np.asarray(a_GCK, np.float64), full_matrices=False)
    channels_GC, times_GK = u[:, :, 0], vh[:, 0]
    peak_G1 = np.take_along_axis(channels_GC, np.abs(channels_GC).argmax(1)[:, None], 1)
    sign_G1 = np.where(peak_G1 < 0, -1.0, 1.0)
    share_G = s[:, 0] ** 2 / np.maximum((s**2).sum(1), np.finfo(float).tiny)
    return (channels_GC * sign_G1).astype(np.float32), (times_GK * sign_G1).astype(np.float32), share_G


def amplitude_spectra(kernel_GXK: Array, sfreq: float) -> tuple[Array, Array]:
    """Return frequencies (Hz) and the gain of each filter there, over all its channels; the largest gain is 1.

    Parameters
    ----------
    kernel_GXK
        (G, K) kernels, or (G, C, K) with channels.
    sfreq
        Sampling rate, Hz.
    """
    gain = np.abs(np.fft.rfft(kernel_GXK, n=max(_MIN_FFT, kernel_GXK.shape[-1])))
    if gain.ndim == 3:
        gain = np.sqrt((gain**2).mean(1))
    gain /= np.maximum(gain.max(-1, keepdims=True), np.finfo(np.float32).tiny)
    return np.linspace(0, sfreq / 2, gain.shape[-1], dtype=np.float32), gain.astype(np.float32)
