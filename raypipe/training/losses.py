"""Training losses. Trials are ranked by their target's metric, never by one of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from raypipe.core.combinations import check_loss
from raypipe.core.config import LossConfig, OwnLossConfig, TrialConfig
from raypipe.core.metrics import Kind
from raypipe.models.readout import bin_centres, decode_variance, distribution_mean
from raypipe.training.own_functions import Loss, make_own_loss

if TYPE_CHECKING:
    from raypipe.training.loader import FoldData

_TINY = 1e-12  # keeps the slope of x ** gamma finite at x = 0 for a gamma below 1


def make_fold_loss(config: TrialConfig, data: FoldData) -> Loss:
    """Build the mean loss of a fold; classes are weighted by their frequency in the drawn windows."""
    windows = data.windows
    classes = len(windows.classes)
    weights = None
    if classes and config.loss.balanced:
        weights = class_weights(windows.targets[data.train], classes, data.chances).to(data.device)
    how: dict[str, Any] = {"kind": windows.kind, "class_weights": weights, "bins": config.model.n_bins}
    if isinstance(config.loss, OwnLossConfig):
        return make_own_loss(config.loss, **how)
    return make_loss(config.loss, n_classes=classes, **how)


def make_loss(
    cfg: LossConfig, *, kind: Kind, n_classes: int = 0, class_weights: Tensor | None = None, bins: int = 0
) -> Loss:
    """Build the mean loss over a batch: ``loss(pred, target) -> scalar``.

    Regression takes predictions (B, 1), with `bins` logits (B, bins) of a distribution, or for `nll` predictions and
    log-variances (B, 2), and targets (B,), all in standard deviations of the training targets. Of several values,
    predictions and targets are (B, K), and the loss is the mean over the outputs. Classification takes
    logits (B, n_classes) and classes (B,) or, after mixing, fractions of classes (B, n_classes).

    Parameters
    ----------
    cfg
        Which loss, and its parameters.
    kind
        Kind of the target.
    n_classes
        Number of classes of a classification target.
    class_weights
        (n_classes,), see `class_weights`; needed if ``cfg.balanced`` and the target has classes, else unused. The mean
        over a batch is a plain one, so weights should average to 1 over the drawn windows. (PyTorch divides by the
        sum of the weights for hard targets and by B for soft ones; here both mean the same.)
    bins
        Number of bins of a regression's distribution; 0 for predictions that are one number.

    Raises
    ------
    UserError
        The configuration does not suit the kind of target; names the parameter.
    ValueError
        Class weights are missing or of the wrong shape; or, in the loss, shapes other than those above.
    """
    if kind not in ("classification", "regression"):
        raise ValueError(f"kind must be 'classification' or 'regression' (given {kind!r})")
    check_loss(cfg, kind)
    if kind == "regression":
        return _regression_loss(cfg, bins)
    return _classification_loss(cfg, n_classes, class_weights)


def _regression_loss(cfg: LossConfig, bins: int) -> Loss:
    if cfg.name == "kl":
        return _divergence(cfg.width)
    if cfg.name == "nll":
        return _likelihood(cfg.variance_power)
    loss = {"plain": _squared, "focal": _focal_r(cfg.gamma, cfg.beta), "huber": _huber(cfg.delta)}[cfg.name]
    return (lambda logits_BK, target_B: loss(distribution_mean(logits_BK), target_B)) if bins else loss


def _classification_loss(cfg: LossConfig, n_classes: int, class_weights: Tensor | None) -> Loss:
    if n_classes < 2:
        raise ValueError(f"a classification needs two classes or more (given {n_classes})")
    weights_K = class_weights if cfg.balanced else None
    if cfg.balanced and class_weights is None:
        raise ValueError("loss/balanced is on, so class_weights are needed")
    if weights_K is not None and weights_K.shape != (n_classes,):
        raise ValueError(f"class_weights must be ({n_classes},), got {tuple(weights_K.shape)}")
    return _focal(n_classes, weights_K, cfg.gamma if cfg.name == "focal" else 0.0, cfg.smoothing)


def class_weights(targets: ArrayLike, n_classes: int, chances: ArrayLike | None = None) -> Tensor:
    """Return inverse-frequency weights (n_classes,) whose mean over drawn windows is 1.

    A class without a window gets weight 0.

    Parameters
    ----------
    targets
        Classes (N,) of the training windows, 0 to n_classes - 1.
    chances
        (N,) chance that a draw is each window, which sum to 1; None if all have the same. Where subjects are drawn
        evenly, a class of few windows may be drawn often.

    Raises
    ------
    ValueError
        There are no targets, or one is out of range.
    """
    targets_N = np.asarray(targets, dtype=np.int64)
    if targets_N.ndim != 1 or len(targets_N) == 0 or targets_N.min() < 0 or targets_N.max() >= n_classes:
        raise ValueError(f"targets must be one or more classes (N,) from 0 to {n_classes - 1}")
    chances_N = np.full(len(targets_N), 1.0 / len(targets_N)) if chances is None else np.asarray(chances)
    share_K = np.bincount(targets_N, weights=chances_N, minlength=n_classes)
    present_K = share_K > 0
    weights_K = np.where(present_K, 1.0 / (present_K.sum() * np.where(present_K, share_K, 1.0)), 0.0)
    return torch.tensor(weights_K, dtype=torch.float32)


def _errors(pred_B1: Tensor, target_B: Tensor) -> Tensor:
    """Subtract (B,) from (B, 1), or (B, K) from (B, K); without this check (B, 1) would be broadcast to (B, B)."""
    if target_B.ndim == 2 and target_B.shape[1] > 1 and pred_B1.shape == target_B.shape:
        return pred_B1 - target_B
    if pred_B1.ndim != 2 or pred_B1.shape[1] != 1 or target_B.shape != pred_B1.shape[:1]:
        raise ValueError(
            f"regression needs predictions (B, 1) and targets (B,), got {tuple(pred_B1.shape)} "
            f"and {tuple(target_B.shape)}"
        )
    return pred_B1.squeeze(1) - target_B


def _squared(pred: Tensor, target: Tensor) -> Tensor:
    return _errors(pred, target).square().mean()


def _huber(delta: float) -> Loss:
    def huber(pred: Tensor, target: Tensor) -> Tensor:
        e_B = _errors(pred, target)
        return F.huber_loss(e_B, torch.zeros_like(e_B), delta=delta)

    return huber


def _focal_r(gamma: float, beta: float) -> Loss:
    """Build Focal-R (Yang et al. 2021, arXiv:2102.09554, sec. 4.1): mean of e^2 * (2 sigmoid(beta |e|) - 1)^gamma.

    The bracket is tanh(beta |e| / 2). Errors are in standard deviations of the training targets; the paper's are in
    years of age, and so is its beta.
    """

    def focal_r(pred: Tensor, target: Tensor) -> Tensor:
        e_B = _errors(pred, target)
        return (e_B.square() * (0.5 * beta * e_B.abs()).tanh().clamp_min(_TINY).pow(gamma)).mean()

    return focal_r


def _divergence(width: float) -> Loss:
    """Build the Kullback-Leibler divergence of a distribution over bins from a Gaussian around the target.

    The Gaussian is limited to the bins. After label distribution learning (Geng 2016, arXiv:1408.6027, eq. 3).
    """

    def divergence(logits_BK: Tensor, target_B: Tensor) -> Tensor:
        if logits_BK.ndim != 2 or logits_BK.shape[1] < 2 or target_B.shape != logits_BK.shape[:1]:
            raise ValueError(
                f"kl needs logits (B, bins) and targets (B,), got {tuple(logits_BK.shape)} and {tuple(target_B.shape)}"
            )
        centre_K = bin_centres(logits_BK)
        # A target outside the bins is moved to their edge. Its Gaussian would otherwise have no weight in any bin.
        target_B1 = target_B.clamp(centre_K[0], centre_K[-1])[:, None]
        log_t_BK = (-0.5 * ((centre_K - target_B1) / width).square()).log_softmax(1)
        return (log_t_BK.exp() * (log_t_BK - logits_BK.log_softmax(1))).sum(1).mean()

    return divergence


def _likelihood(power: float) -> Loss:
    """Build the negative Gaussian log-likelihood (Nix & Weigend 1994) without its constant, weighted per window.

    The weight is the variance to a power, without a gradient: beta-NLL (Seitzer et al. 2022, arXiv:2203.09168, eq. 4).
    """

    def likelihood(out_B2: Tensor, target_B: Tensor) -> Tensor:
        if out_B2.ndim != 2 or out_B2.shape[1] != 2 or target_B.shape != out_B2.shape[:1]:
            raise ValueError(
                f"nll needs values and log-variances (B, 2) and targets (B,), got {tuple(out_B2.shape)} and "
                f"{tuple(target_B.shape)}"
            )
        value_B, variance_B = decode_variance(out_B2).unbind(1)
        nll_B = 0.5 * (variance_B.log() + (value_B - target_B).square() / variance_B)
        return (nll_B * variance_B.detach().pow(power)).mean()

    return likelihood


def _focal(n_classes: int, weights_K: Tensor | None, gamma: float, smoothing: float) -> Loss:
    """Build the focal loss for fractions of classes t: sum_k w_k t_k (1 - p_k)^gamma (-log p_k).

    Lin et al. 2017, arXiv:1708.02002, eq. 4. With gamma 0 it is cross-entropy.
    """

    def focal(logits_BK: Tensor, target: Tensor) -> Tensor:
        if logits_BK.ndim != 2 or logits_BK.shape[1] != n_classes:
            raise ValueError(f"expected logits (B, {n_classes}), got {tuple(logits_BK.shape)}")
        if target.shape == logits_BK.shape and target.is_floating_point():
            t_BK = target.to(logits_BK.dtype)
        elif target.shape == logits_BK.shape[:1] and not target.is_floating_point():
            t_BK = F.one_hot(target.long(), n_classes).to(logits_BK.dtype)
        else:
            raise ValueError(
                f"targets must be classes (B,) or fractions of classes (B, {n_classes}), got {target.dtype} "
                f"{tuple(target.shape)}"
            )
        if smoothing:
            t_BK = (1.0 - smoothing) * t_BK + smoothing / n_classes
        if weights_K is not None:
            t_BK = t_BK * weights_K.to(logits_BK)
        log_p_BK = logits_BK.log_softmax(1)
        if gamma:
            t_BK = t_BK * (-log_p_BK.expm1()).clamp_min(_TINY).pow(gamma)
        return -(t_BK * log_p_BK).sum(1).mean()

    return focal


def mean_loss(losses: Sequence[float | Tensor], weights: Sequence[int]) -> float:
    """Return the weighted mean of the losses of an epoch's steps; a GPU is waited for once."""
    values = torch.stack([loss if isinstance(loss, Tensor) else torch.tensor(loss) for loss in losses]).double()
    return float(np.average(values.cpu().numpy(), weights=weights))
