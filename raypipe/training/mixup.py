"""Mixing of windows and their targets within a batch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from raypipe.core.config import MixupConfig
from raypipe.training.transfer import to_device

Floats = NDArray[np.float64]


def mix(
    cfg: MixupConfig,
    x_BCT: Tensor,
    y: Tensor,
    *,
    rng: np.random.Generator,
    kind: Literal["classification", "regression"],
    n_classes: int = 0,
    subjects: ArrayLike | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix each window of a batch with a partner, another window of the batch.

    - `mixup` (Zhang et al. 2018, arXiv:1710.09412): ``x = l x_i + (1 - l) x_j`` with a separate l ~ Beta(alpha, alpha)
      for each window.
    - `cmixup` (C-Mixup, Yao et al. 2022, arXiv:2210.05775, eq. 6): the same, with partners drawn with probability
      ~ ``exp(-|y_i - y_j|^2 / (2 h^2))``. The distance of classes is that of their one-hot vectors; of several values,
      the square is the mean over them.
    - `cutmix` (after Yun et al. 2019, arXiv:1905.04899): one interval of the window, a fraction 1 - l of its samples in
      all channels, is taken from the partner.
    - `cutmix-channels`: a fraction 1 - l of the channels, at all samples, is taken from the partner.

    The target is mixed with the weight that the window kept; for cuts that is the fraction after rounding. Partners are
    a random permutation of the batch, or for `cmixup` and `other_subject`, drawn for each window.

    Parameters
    ----------
    cfg
        How, how strongly and how often to mix; with `none` nothing is drawn from `rng`.
    x_BCT
        Windows; not changed.
    y
        (B,) or (B, K) values for regression, in standard deviations, or classes (B,), on the host; not changed.
    rng
        Source of all random numbers: two equal generators give two equal batches.
    kind
        Kind of the target.
    n_classes
        Number of classes of a classification target.
    subjects
        (B,) subject of each window; needed for `other_subject`.

    Returns
    -------
    x_BCT, y
        A batch that is mixed has new tensors, and fractions of classes (B, n_classes) instead of classes. A fraction
        1 - `prob` of the batches is returned as it is.

    Raises
    ------
    ValueError
        Targets or subjects do not match the windows.
    """
    several = kind == "regression" and y.ndim == 2 and y.shape[1] > 1
    if y.shape[:1] != x_BCT.shape[:1] or (y.ndim > 1 and not several):
        raise ValueError(f"expected targets ({len(x_BCT)},), got {tuple(y.shape)}")
    if cfg.name == "none" or rng.random() >= cfg.prob:
        return x_BCT, y
    n, n_channels, n_times = x_BCT.shape
    partner_B = torch.from_numpy(_partners(cfg, y, rng, kind, subjects))
    kept_B = rng.beta(cfg.alpha, cfg.alpha, size=n)
    device = x_BCT.device
    other_BCT = x_BCT[to_device(partner_B, device)]
    if cfg.name in ("mixup", "cmixup"):
        kept_B11 = to_device(torch.from_numpy(kept_B).to(x_BCT.dtype), device)[:, None, None]
        x_BCT = torch.lerp(other_BCT, x_BCT, kept_B11)
    else:
        cut = _cut_interval if cfg.name == "cutmix" else _cut_channels
        cut_BCT, kept_B = cut(rng, kept_B, n_channels, n_times)
        x_BCT = torch.where(to_device(cut_BCT, device), other_BCT, x_BCT)
    weight_B = torch.from_numpy(kept_B)
    if kind == "classification":
        t_BK = F.one_hot(y.long(), n_classes).to(x_BCT.dtype)
        return x_BCT, torch.lerp(t_BK[partner_B], t_BK, weight_B.to(t_BK)[:, None])
    weight = weight_B.to(y)
    return x_BCT, torch.lerp(y[partner_B], y, weight if y.ndim == 1 else weight[:, None])


def _cut_interval(
    rng: np.random.Generator, kept_B: Floats, n_channels: int, n_times: int
) -> tuple[NDArray[np.bool_], Floats]:
    """Return which samples (B, 1, T) are taken from the partner, an interval, and the fraction (B,) that is kept."""
    cut_B = np.rint((1.0 - kept_B) * n_times).astype(np.int64)
    start_B = rng.integers(0, n_times - cut_B, endpoint=True)
    sample_1T = np.arange(n_times)[None]
    cut_BT = (sample_1T >= start_B[:, None]) & (sample_1T < (start_B + cut_B)[:, None])
    return cut_BT[:, None], 1.0 - cut_B / n_times


def _cut_channels(
    rng: np.random.Generator, kept_B: Floats, n_channels: int, n_times: int
) -> tuple[NDArray[np.bool_], Floats]:
    """Return which channels (B, C, 1) are taken from the partner, and the fraction (B,) that is kept."""
    cut_B = np.rint((1.0 - kept_B) * n_channels).astype(np.int64)
    rank_BC = rng.permuted(np.tile(np.arange(n_channels), (len(kept_B), 1)), axis=1)
    return (rank_BC < cut_B[:, None])[..., None], 1.0 - cut_B / n_channels


def _partners(
    cfg: MixupConfig, y: Tensor, rng: np.random.Generator, kind: str, subjects: ArrayLike | None
) -> NDArray[np.int64]:
    """Return the partner (B,) of each window of a batch."""
    if cfg.name != "cmixup" and not cfg.other_subject:
        return rng.permutation(len(y))
    allowed_BB = ~np.eye(len(y), dtype=bool)
    if cfg.other_subject:
        names_B: NDArray[Any] = np.asarray(subjects)
        if subjects is None or names_B.shape != (len(y),):
            raise ValueError(f"mixup/other_subject needs the subject of each of {len(y)} windows")
        allowed_BB = names_B[:, None] != names_B
    square_BB = np.zeros((len(y), len(y)))
    if cfg.name == "cmixup":
        values = y.detach().cpu().numpy().astype(np.float64)
        apart = values[:, None] - values
        square_BB = 2.0 * (apart != 0) if kind == "classification" else apart**2
        if square_BB.ndim == 3:
            square_BB = square_BB.mean(2)
    # Relative to each row's nearest, so that a window far from all others has a partner too.
    nearest_B1 = np.where(allowed_BB, square_BB, np.inf).min(axis=1, keepdims=True)
    alone_B = ~np.isfinite(nearest_B1[:, 0])
    nearest_B1[alone_B] = 0.0
    further_BB = np.where(allowed_BB, square_BB - nearest_B1, np.inf)
    nearness_BB = np.exp(-further_BB / (2.0 * cfg.bandwidth**2))
    total_BB = np.cumsum(nearness_BB, axis=1)
    drawn_B1 = rng.random((len(y), 1)) * total_BB[:, -1:]
    partner_B = (total_BB <= drawn_B1).sum(axis=1)
    return np.where(alone_B, np.arange(len(y)), partner_B)
