"""Answers read from what a network gives for a regression: a distribution over bins, or a value with its variance.

This file needs torch (2.2 or later) alone: submissions carry it as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

REACH = 3.5
"""The bins' centres lie between -3.5 and 3.5 standard deviations of the training targets."""
LOG_VARIANCE = (-9.0, 6.0)
"""Least and largest logarithm of a told variance, in squared standard deviations of the training targets: beyond them a
likelihood has no use of it, and its gradient no end."""


def bin_centres(logits_BK: Tensor) -> Tensor:
    """Centres (K,) of the bins that K logits are for, in standard deviations, with the logits' type and device."""
    return torch.linspace(-REACH, REACH, logits_BK.shape[-1], dtype=logits_BK.dtype, device=logits_BK.device)


def expectation(logits_BK: Tensor) -> Tensor:
    """Soft-argmax (B, 1): the mean of the distribution that logits (B, K) give over the bins; (B, 1) stays as it is."""
    if logits_BK.shape[-1] == 1:
        return logits_BK
    answer: Tensor = (logits_BK.softmax(-1) * bin_centres(logits_BK)).sum(-1, keepdim=True)
    return answer


def moments(logits_BK: Tensor) -> Tensor:
    """Mean and variance (B, 2) of the distribution that logits (B, K) give over the bins."""
    p_BK, mean_B1 = logits_BK.softmax(-1), expectation(logits_BK)
    variance_B1 = (p_BK * (bin_centres(logits_BK) - mean_B1).square()).sum(-1, keepdim=True)
    return torch.cat([mean_B1, variance_B1], dim=-1)


def told(out_B2: Tensor) -> Tensor:
    """Value and variance (B, 2) from a head's value and logarithm of the variance."""
    value_B1, log_B1 = out_B2[..., :1], out_B2[..., 1:]
    return torch.cat([value_B1, log_B1.clamp(*LOG_VARIANCE).exp()], dim=-1)
