"""Mixing of windows and targets within a batch."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from raypipe.config import MixupConfig


def mix(
    cfg: MixupConfig,
    x_BCT: Tensor,
    y: Tensor,
    *,
    rng: np.random.Generator,
    kind: Literal["classification", "regression"],
    n_classes: int = 0,
) -> tuple[Tensor, Tensor]:
    """Mix each window of a batch with a partner, another window of a random permutation.

    `mixup` (Zhang et al. 2018, arXiv:1710.09412): ``x = l x_i + (1 - l) x_j`` with l ~ Beta(alpha, alpha) of its own
    for each window. `cutmix` (after Yun et al. 2019, arXiv:1905.04899, in time): one stretch of the window, a share
    1 - l of its samples in all channels, comes from the partner. The target is mixed by the weight that the window
    kept; for `cutmix` that is the share of samples after rounding.

    Parameters
    ----------
    cfg
        What, how much, how often; with `none` nothing is drawn from `rng`.
    x_BCT
        Windows, not changed.
    y
        Values (B,) for regression, classes (B,) for classification; not changed.
    rng
        The only source of chance: two equal generators give two equal batches.
    kind
        Of the task.
    n_classes
        Classes of a classification task.

    Returns
    -------
    x_BCT, y
        A batch that is mixed has new tensors, and shares (B, n_classes) in place of classes; one that is not
        (a share 1 - `prob` of them) is what was given.
    """
    if y.shape != x_BCT.shape[:1]:
        raise ValueError(f"expected targets ({len(x_BCT)},), got {tuple(y.shape)}")
    if cfg.name == "none" or rng.random() >= cfg.prob:
        return x_BCT, y
    n, _, n_times = x_BCT.shape
    partner_B = torch.from_numpy(rng.permutation(n)).to(x_BCT.device)
    kept_B = rng.beta(cfg.alpha, cfg.alpha, size=n)
    other_BCT = x_BCT[partner_B]
    if cfg.name == "mixup":
        kept_B11 = torch.from_numpy(kept_B).to(x_BCT)[:, None, None]
        x_BCT = torch.lerp(other_BCT, x_BCT, kept_B11)
    else:
        cut_B = np.rint((1.0 - kept_B) * n_times).astype(np.int64)
        start_B = rng.integers(0, n_times - cut_B, endpoint=True)
        sample_1T = np.arange(n_times)[None]
        cut_BT = (sample_1T >= start_B[:, None]) & (sample_1T < (start_B + cut_B)[:, None])
        x_BCT = torch.where(torch.from_numpy(cut_BT).to(x_BCT.device)[:, None], other_BCT, x_BCT)
        kept_B = 1.0 - cut_B / n_times
    weight_B = torch.from_numpy(kept_B)
    if kind == "classification":
        t_BK = F.one_hot(y.long(), n_classes).to(x_BCT.dtype)
        return x_BCT, torch.lerp(t_BK[partner_B], t_BK, weight_B.to(t_BK)[:, None])
    return x_BCT, torch.lerp(y[partner_B], y, weight_B.to(y))
