"""Decode what a network outputs for a regression: a distribution over bins, or a value with its log-variance.

This file needs torch (2.2 or later) and nothing else: submissions contain it unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

BIN_RANGE = 3.5
"""Bin centres are between -3.5 and 3.5 standard deviations of the training targets."""
LOG_VARIANCE_RANGE = (-9.0, 6.0)
"""Limits of a predicted log-variance, in squared standard deviations of the training targets. Beyond them the variance
no longer changes the likelihood in a useful way, and its gradient grows without limit."""


def bin_centres(logits_BK: Tensor) -> Tensor:
    """Return the centres (K,) of K bins in standard deviations, with the logits' type and device."""
    return torch.linspace(-BIN_RANGE, BIN_RANGE, logits_BK.shape[-1], dtype=logits_BK.dtype, device=logits_BK.device)


def distribution_mean(logits_BK: Tensor) -> Tensor:
    """Return the mean (B, 1) of the distribution over bins (soft-argmax); logits (B, 1) are returned as they are."""
    if logits_BK.shape[-1] == 1:
        return logits_BK
    mean_B1: Tensor = (logits_BK.softmax(-1) * bin_centres(logits_BK)).sum(-1, keepdim=True)
    return mean_B1


def distribution_moments(logits_BK: Tensor) -> Tensor:
    """Return mean and variance (B, 2) of the distribution over bins."""
    p_BK, mean_B1 = logits_BK.softmax(-1), distribution_mean(logits_BK)
    variance_B1 = (p_BK * (bin_centres(logits_BK) - mean_B1).square()).sum(-1, keepdim=True)
    return torch.cat([mean_B1, variance_B1], dim=-1)


def decode_variance(out_B2: Tensor) -> Tensor:
    """Return value and variance (B, 2) of a head's value and log-variance (B, 2)."""
    value_B1, log_B1 = out_B2[..., :1], out_B2[..., 1:]
    return torch.cat([value_B1, log_B1.clamp(*LOG_VARIANCE_RANGE).exp()], dim=-1)
