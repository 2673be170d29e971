"""Activation patterns on the scalp of models that are fitted in closed form.

Let s be the prediction for a window x, and u something that is measured at each channel. The pattern is

    a = Cov(u, s) / SD(s),

the change of u with one standard deviation of the prediction. For s = w'f and u = f it is Cov(f) w / SD(s), the
pattern of a linear map (Haufe et al. 2014, doi:10.1016/j.neuroimage.2013.10.067, theorem 1, eq. 6, for one output, in
units of its standard deviation). What is read depends on the features f:

- Band power of channels: u = f, the logarithm of each channel's power in a band.
- Covariances C_g of channels in band g: f are tangent vectors, and u = log diag C_g is a function h(f) of them. To
  first order, Cov(h(f), s) is the derivative of h at the mean tangent vector times Cov(f, s), the pattern of these
  vectors (Kobler et al. 2021, doi:10.1109/EMBC46164.2021.9630144). Cov(h(f), s) itself is computed, and shrinkage is
  left out.
- Power, or covariances C_g, of the outputs y = V x of spatial filters (components, xDAWN). They go back to the channels
  by their forward patterns, which are of the same equation: P_g = T_g V' (V T_g V')^-1, with the channels' covariance
  T_g in the band. u = log diag (P_g C_g P_g' + T_g - P_g V T_g): the power that the filters leave out stays as it is on
  average, so that a channel counts by the share of its power that they explain.
- Time courses: u = P f, where f (S, I) are the means of I intervals (without filters, u = f). The pattern is
  P Cov(f, s) / SD(s): the forward patterns of the components times the patterns of their time courses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypipe.models.closed_form import centre, spectrum
from raypipe.models.covariance import Covariance
from raypipe.models.linear import Linear

Array = NDArray[np.float64]
Readable = Covariance | Linear
"""Models with patterns on the scalp."""

DECIBELS = 10.0 / np.log(10.0)
"""Of a natural logarithm of power."""
BATCH_VALUES = 2**22
"""Values of covariances, features or windows that are computed at a time."""
MIN_SD = 1e-5
"""Standard deviation of predictions (standardised values, or log odds) from which there is a pattern."""
_MIN_POWER = 1e-12
"""Added to powers whose logarithm is taken, as of channels that never change."""


class ScalpPatterns(NamedTuple):
    """Changes at the channels with one standard deviation of the prediction."""

    values: Array
    """(O, M, C) of each output in each band (dB) or interval (the windows' unit, or that of `scale`)."""
    power: bool
    """Whether M are the bands, whose power changes; otherwise they are intervals of a time course."""


def unreadable(model: Readable) -> str:
    """Return why a model has no pattern on the scalp, in words that follow a colon; empty if it has one."""
    if isinstance(model, Covariance) and model.order > 1:
        return "most of its features are covariances of delayed copies, which are of frequencies and not of places."
    return ""


def scalp_patterns(model: Readable, x_NCT: Tensor, n_classes: int) -> ScalpPatterns | None:
    """Return the activation patterns of a fitted model; see the module.

    Parameters
    ----------
    model
        A model that is not `unreadable`.
    x_NCT
        Windows.
    n_classes
        Number of classes; 0 for regression.

    Returns
    -------
    patterns
        The outputs are the values; of two classes, the log odds of the second; of more, each class's logit minus the
        mean of all. None if the predictions of all windows are the same.
    """
    s_NO = np.concatenate([_outputs(model, x_BCT, n_classes) for x_BCT in _batches(model, x_NCT)])
    s_NO -= s_NO.mean(0)
    sd_O = s_NO.std(0)
    if not (sd_O >= MIN_SD).any():
        return None
    power = isinstance(model, Covariance) or model.predictors == "band-power"
    ranges = model.ranges if power else [(1, x_NCT.shape[-1] // 2 + 1)]
    forward = None if model.filters_SC is None else _forward(model, model.filters_SC, x_NCT, ranges)
    measure = _log_power if power else _time_courses
    u_NMC = np.concatenate([measure(model, x_BCT, forward) for x_BCT in _batches(model, x_NCT)])
    covariance_OMC = np.einsum("no,nmc->omc", s_NO, u_NMC - u_NMC.mean(0)) / len(s_NO)
    values_OMC = covariance_OMC / np.maximum(sd_O, MIN_SD)[:, None, None]
    return ScalpPatterns(values_OMC * (DECIBELS if power else 1.0), power)


def _batches(model: Readable, x_NCT: Tensor) -> Iterator[Tensor]:
    """Return the windows in batches that bound the memory."""
    squares = len(model.ranges) * max(model.n_channels, model.n_signals) ** 2
    each = max(x_NCT[0].numel(), model.weight_OF.shape[1], squares)
    return iter(torch.split(x_NCT, max(1, BATCH_VALUES // each)))


def _outputs(model: Readable, x_BCT: Tensor, n_classes: int) -> Array:
    """Return what patterns are of (B, O); see `scalp_patterns`."""
    y_BO = model.back(model.front(x_BCT)).double()
    if n_classes == 2:
        y_BO = y_BO[:, 1:] - y_BO[:, :1]
    elif n_classes:
        y_BO = y_BO - y_BO.mean(1, keepdim=True)
    elif model.bins:
        y_BO = y_BO[:, :1]
    return y_BO.numpy()


class _Forward(NamedTuple):
    """How the outputs of spatial filters get to the channels, in ranges of frequencies."""

    patterns_GCS: Tensor  # noqa: N815
    unexplained_GC: Tensor  # noqa: N815
    """Power of what the filters leave out."""


def _forward(model: Readable, v_SC: Tensor, x_NCT: Tensor, ranges: list[tuple[int, int]]) -> _Forward:
    """Estimate forward patterns. Windows are divided by their power over all ranges, so that none dominates."""
    sum_GCC, weight = torch.zeros(len(ranges), model.n_channels, model.n_channels, dtype=torch.float64), 0.0
    for x_BCT in _batches(model, x_NCT):
        c_BGCC = _band_covariances(spectrum(centre(x_BCT), getattr(model, "taper", "none")), ranges)
        weight_B = 1.0 / c_BGCC.diagonal(dim1=-2, dim2=-1).sum((1, 2)).clamp_min(_MIN_POWER)
        sum_GCC += torch.einsum("bgcd,b->gcd", c_BGCC, weight_B)
        weight += float(weight_B.sum())
    t_GCC = sum_GCC / weight
    between_GCS = t_GCC @ v_SC.mT
    patterns_GCS = between_GCS @ torch.linalg.pinv(v_SC @ between_GCS, hermitian=True)
    unexplained_GC = (t_GCC - patterns_GCS @ between_GCS.mT).diagonal(dim1=-2, dim2=-1)
    return _Forward(patterns_GCS, unexplained_GC.clamp_min(0.0))


def _band_covariances(z_BSN: Tensor, ranges: list[tuple[int, int]]) -> Tensor:
    """Return the covariances (B, G, S, S) of signals, whose Fourier transforms are given, in ranges of their bins."""
    bands = [torch.view_as_real(z_BSN[..., first:end]).flatten(-2) for first, end in ranges]
    return torch.stack([y_BSN @ y_BSN.mT for y_BSN in bands], dim=1)


def _log_power(model: Readable, x_BCT: Tensor, forward: _Forward | None) -> Array:
    """Return the logarithm of the power (B, G, C) at each channel, relative to what the model divides it by."""
    if isinstance(model, Linear):
        if forward is None:
            return cast(Array, model.front(x_BCT).reshape(len(x_BCT), len(model.ranges), -1).numpy())
        y_BST = model.signals(x_BCT)
        c_BGSS = _band_covariances(spectrum(y_BST), model.ranges)
        divisor_BG1 = y_BST.square().mean((1, 2))[:, None, None]
    else:
        c_BGDD = model.raw_covariances(x_BCT)
        c_BGSS = c_BGDD[..., -model.n_signals :, -model.n_signals :]
        divisor_BG1 = c_BGDD.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        if model.scale == "window":
            divisor_BG1 = divisor_BG1.sum(1, keepdim=True)
    power_BGC = c_BGSS.diagonal(dim1=-2, dim2=-1)
    if forward is not None:
        p_GCS = forward.patterns_GCS
        power_BGC = ((p_GCS @ c_BGSS) * p_GCS).sum(-1).clamp_min(0.0) + forward.unexplained_GC
    if model.scale != "none":
        power_BGC = power_BGC / divisor_BG1.clamp_min(_MIN_POWER)
    return cast(Array, torch.log(power_BGC + _MIN_POWER).numpy())


def _time_courses(model: Readable, x_BCT: Tensor, forward: _Forward | None) -> Array:
    """Return the mean (B, I, C) of each interval at each channel, as the model scales it."""
    m_BSI = model.front(x_BCT).reshape(len(x_BCT), model.n_signals, -1)
    return cast(Array, (m_BSI if forward is None else forward.patterns_GCS[0] @ m_BSI).mT.numpy())
