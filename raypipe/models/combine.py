"""Rules that combine members' predictions: fixed weights, weights for each sample, boosted trees.

Rules are fitted elsewhere. The result is a plain dict of numbers, which this file applies to out-of-fold predictions
and inside a shipped module. It needs torch (2.2 or later) and nothing else: submissions contain it unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Rule = Mapping[str, Any]

_MIN_PROBABILITY = 1e-7
"""Smallest probability whose logarithm is taken."""


def combine(rule: Rule, values_MNO: Tensor, variances_MN: Tensor | None = None) -> Tensor:
    """Combine members' predictions.

    Parameters
    ----------
    rule
        ``kind`` and its numbers, one of:

        - ``linear``: ``weights`` (M), ``intercept``, a number or one for each output: the weighted sum.
        - ``precision`` (regression): ``scale`` and ``floor`` (M): the weights of a sample are the inverse of its
          calibrated variance, ``scale * variance + floor``. A member that predicts no variance has scale 0.
        - ``entropy`` (classes): ``weights`` and ``temperatures`` (M), ``gamma``: probabilities are scaled by their
          temperature (Guo et al. 2017, arXiv:1706.04599), and the weights of a sample decrease with
          ``exp(-gamma * entropy / log K)``.
        - ``trees``: see `boosted_trees`.
    values_MNO
        (M, N, O) values in target units, or class probabilities.
    variances_MN
        (M, N) variances that members predict, if any do.

    Returns
    -------
    Tensor
        (N, O), computed in float64, so that rounding errors do not change which branch of a tree a sample takes.
    """
    variances_MN = None if variances_MN is None else variances_MN.double()
    combined_NO: Tensor = RULES[rule["kind"]](rule, values_MNO.double(), variances_MN)
    return combined_NO.to(values_MNO.dtype)


def _numbers(values: Any, like: Tensor) -> Tensor:
    """Return a list of numbers as a tensor with the type and device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _linear(rule: Rule, values_MNO: Tensor, variances_MN: Tensor | None) -> Tensor:
    mixed_NO: Tensor = torch.einsum("m,mno->no", _numbers(rule["weights"], values_MNO), values_MNO)
    intercept = rule["intercept"]
    return mixed_NO + (_numbers(intercept, mixed_NO) if isinstance(intercept, list) else float(intercept))


def _precision(rule: Rule, values_MNO: Tensor, variances_MN: Tensor | None) -> Tensor:
    floor_M1, scale_M1 = (_numbers(rule[name], values_MNO)[:, None] for name in ("floor", "scale"))
    calibrated_MN = floor_M1.expand(-1, values_MNO.shape[1])
    if variances_MN is not None:
        calibrated_MN = calibrated_MN + scale_M1 * variances_MN
    weights_MN = 1.0 / calibrated_MN
    return torch.einsum("mn,mno->no", weights_MN / weights_MN.sum(0), values_MNO)


def apply_temperature(p_MNK: Tensor, temperatures_M: Tensor) -> Tensor:
    """Scale probabilities by a temperature for each member; above 1 they move towards equal probabilities."""
    return torch.softmax(p_MNK.clamp_min(_MIN_PROBABILITY).log() / temperatures_M[:, None, None], dim=-1)


def normalised_entropy(p_MNK: Tensor) -> Tensor:
    """Return the entropy (M, N) of class probabilities divided by its maximum: 0 for one class, 1 for equal ones."""
    total_MN: Tensor = -(p_MNK * p_MNK.clamp_min(_MIN_PROBABILITY).log()).sum(-1)
    return total_MN / math.log(p_MNK.shape[-1])


def _entropy(rule: Rule, values_MNO: Tensor, variances_MN: Tensor | None) -> Tensor:
    p_MNK = apply_temperature(values_MNO, _numbers(rule["temperatures"], values_MNO))
    weights_MN = _numbers(rule["weights"], p_MNK)[:, None] * torch.exp(-rule["gamma"] * normalised_entropy(p_MNK))
    return torch.einsum("mn,mnk->nk", weights_MN / weights_MN.sum(0), p_MNK)


def tree_features(values_MNO: Tensor, variances_MN: Tensor | None = None) -> Tensor:
    """Return the inputs (N, features) of boosted trees.

    Regression: value of each member, mean, standard deviation between members, and each predicted variance. Classes:
    probability of every class but the first by each member, means, standard deviations, and each member's entropy.
    """
    values_MNP = values_MNO if values_MNO.shape[2] == 1 else values_MNO[:, :, 1:]
    mean_NP, spread_NP = values_MNP.mean(0), values_MNP.std(0, correction=0)
    parts = [values_MNP.permute(1, 0, 2).flatten(1), mean_NP, spread_NP]
    if values_MNO.shape[2] > 1:
        parts.append(normalised_entropy(values_MNO).T)
    elif variances_MN is not None:
        parts.append(variances_MN.T)
    return torch.cat(parts, dim=1)


def calibrate(p_NK: Tensor, calibration: Mapping[str, Any]) -> Tensor:
    """Return calibrated class probabilities (N, K): the softmax of ``scale * log p + shift``.

    ``scale`` is a positive number and ``shift`` has one for each class (Alexandari et al. 2020, arXiv:1901.06852). The
    order of probabilities of a class stays where there are two classes.
    """
    log_NK = p_NK.double().clamp_min(_MIN_PROBABILITY).log()
    shifted_NK = float(calibration["scale"]) * log_NK + _numbers(calibration["shift"], log_NK)
    return torch.softmax(shifted_NK, dim=1).to(p_NK.dtype)


def boosted_trees(rule: Rule, values_MNO: Tensor, variances_MN: Tensor | None = None) -> Tensor:
    """Apply gradient-boosted trees to `tree_features`.

    Regression: the members' mean plus the sum over the trees. Classes: softmax (for two: logistic) of the sums.
    ``trees`` is a list of rounds, each a list of trees (one per output). A tree is a dict with a list over its nodes
    for each of ``feature`` (-1 for leaves), ``threshold``, ``left``, ``right`` and ``value`` (of leaves). ``start`` is
    the initial value of the sums.
    """
    x_NF = tree_features(values_MNO, variances_MN)
    raw_NS = _numbers(rule["start"], x_NF).expand(x_NF.shape[0], -1)
    n_outputs = raw_NS.shape[1]
    added_NT = _tree_values([tree for trees in rule["trees"] for tree in trees], x_NF)
    raw_NS = raw_NS + added_NT.view(x_NF.shape[0], -1, n_outputs).sum(1)
    if values_MNO.shape[2] == 1:
        return values_MNO.mean(0) + raw_NS
    if raw_NS.shape[1] == 1:
        p_N1 = torch.sigmoid(raw_NS)
        return torch.cat([1.0 - p_N1, p_N1], dim=1)
    return torch.softmax(raw_NS, dim=1)


def _tree_values(trees: Sequence[Mapping[str, Any]], x_NF: Tensor) -> Tensor:
    """Return the value of each tree for each sample (N, T). Each iteration descends one level in all trees."""
    n_nodes = max(len(tree["feature"]) for tree in trees)

    def nodes(name: str, dtype: torch.dtype) -> Tensor:
        rows = [list(tree[name]) + [0] * (n_nodes - len(tree[name])) for tree in trees]
        return torch.tensor(rows, dtype=dtype, device=x_NF.device)

    feature_TX, left_TX, right_TX = (nodes(name, torch.int64) for name in ("feature", "left", "right"))
    threshold_TX, value_TX = (nodes(name, x_NF.dtype) for name in ("threshold", "value"))
    tree_T = torch.arange(len(trees), device=x_NF.device)
    node_NT = torch.zeros(x_NF.shape[0], len(trees), dtype=torch.int64, device=x_NF.device)
    for _ in range(max(int(tree["depth"]) for tree in trees)):
        feature_NT = feature_TX[tree_T, node_NT]
        x_NT = x_NF.gather(1, feature_NT.clamp_min(0))
        child_NT = torch.where(
            x_NT <= threshold_TX[tree_T, node_NT], left_TX[tree_T, node_NT], right_TX[tree_T, node_NT]
        )
        node_NT = torch.where(feature_NT < 0, node_NT, child_NT)
    return value_TX[tree_T, node_NT]


RULES: dict[str, Callable[[Rule, Tensor, Tensor | None], Tensor]] = {
    "linear": _linear,
    "precision": _precision,
    "entropy": _entropy,
    "trees": boosted_trees,
}
"""Functions that apply a rule, by its kind."""
