"""How members' answers become one: weights that are fixed, weights a sample, boosted trees. One code for all uses.

Methods are fitted elsewhere; what they give is a plain dict of numbers, which this file applies, offline to out-of-fold
predictions and inside a shipped module. It needs torch (2.2 or later) and nothing else: submissions carry it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Rule = Mapping[str, Any]

_SURE = 1e-7  # of a probability: no member is so sure that its logarithm has no end


def combine(rule: Rule, answers_MNO: Tensor, variances_MN: Tensor | None = None) -> Tensor:
    """Combine members' answers.

    Parameters
    ----------
    rule
        ``kind`` and its numbers, one of:

        - ``linear``: ``weights`` (M), ``intercept``: the weighted sum.
        - ``precision`` (regression): ``scale`` and ``floor`` (M): weights of a sample are the inverse of its calibrated
          variance, ``scale * variance + floor``. A member that tells no variance has scale 0.
        - ``entropy`` (classes): ``weights`` and ``temperatures`` (M), ``gamma``: probabilities are scaled by their
          temperature (Guo et al. 2017, arXiv:1706.04599), and weights of a sample fall by
          ``exp(-gamma * entropy / log K)``.
        - ``trees``: see `boosted`.
    answers_MNO
        Values in target units (one output), or class probabilities.
    variances_MN
        Variances that members give beside their values, if any do.

    Returns
    -------
    Tensor
        (N, O), computed in float64: a rounding error must not send a sample down another branch.
    """
    told_MN = None if variances_MN is None else variances_MN.double()
    found: Tensor = KINDS[rule["kind"]](rule, answers_MNO.double(), told_MN)
    return found.to(answers_MNO.dtype)


def _numbers(values: Any, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _linear(rule: Rule, answers_MNO: Tensor, variances_MN: Tensor | None) -> Tensor:
    mixed_NO: Tensor = torch.einsum("m,mno->no", _numbers(rule["weights"], answers_MNO), answers_MNO)
    return mixed_NO + float(rule["intercept"])


def _precision(rule: Rule, answers_MNO: Tensor, variances_MN: Tensor | None) -> Tensor:
    floor_M1, scale_M1 = (_numbers(rule[name], answers_MNO)[:, None] for name in ("floor", "scale"))
    calibrated_MN = floor_M1.expand(-1, answers_MNO.shape[1])
    if variances_MN is not None:
        calibrated_MN = calibrated_MN + scale_M1 * variances_MN
    shares_MN = 1.0 / calibrated_MN
    return torch.einsum("mn,mno->no", shares_MN / shares_MN.sum(0), answers_MNO)


def temper(p_MNK: Tensor, temperatures_M: Tensor) -> Tensor:
    """Scale probabilities by a temperature a member; above 1 they become less sure."""
    return torch.softmax(p_MNK.clamp_min(_SURE).log() / temperatures_M[:, None, None], dim=-1)


def entropy(p_MNK: Tensor) -> Tensor:
    """Entropy of class probabilities in units of its largest value, 0 (sure) to 1 (nothing known)."""
    total_MN: Tensor = -(p_MNK * p_MNK.clamp_min(_SURE).log()).sum(-1)
    return total_MN / math.log(p_MNK.shape[-1])


def _entropy(rule: Rule, answers_MNO: Tensor, variances_MN: Tensor | None) -> Tensor:
    p_MNK = temper(answers_MNO, _numbers(rule["temperatures"], answers_MNO))
    shares_MN = _numbers(rule["weights"], p_MNK)[:, None] * torch.exp(-rule["gamma"] * entropy(p_MNK))
    return torch.einsum("mn,mnk->nk", shares_MN / shares_MN.sum(0), p_MNK)


def features(answers_MNO: Tensor, variances_MN: Tensor | None = None) -> Tensor:
    """What boosted trees see of a sample (N, features): members' answers, their mean, how far and how sure they are.

    Regression: value of each member, mean, standard deviation between members, and each variance that is told. Classes:
    probability of every class but the first by each member, means, deviations, and entropy of each member.
    """
    values_MNP = answers_MNO if answers_MNO.shape[2] == 1 else answers_MNO[:, :, 1:]
    mean_NP, spread_NP = values_MNP.mean(0), values_MNP.std(0, correction=0)
    parts = [values_MNP.permute(1, 0, 2).flatten(1), mean_NP, spread_NP]
    if answers_MNO.shape[2] > 1:
        parts.append(entropy(answers_MNO).T)
    elif variances_MN is not None:
        parts.append(variances_MN.T)
    return torch.cat(parts, dim=1)


def boosted(rule: Rule, answers_MNO: Tensor, variances_MN: Tensor | None = None) -> Tensor:
    """Gradient-boosted trees on `features`.

    Regression: the members' mean plus what the trees add. Classes: softmax (two: logistic) of what the trees add up to.
    ``trees`` is a list of rounds, each a list of trees (one an output), each a dict of lists a node: ``feature``,
    ``threshold``, ``left``, ``right``, ``value`` (of leaves; their feature is -1); ``start``: what the sums begin with.
    """
    x_NF = features(answers_MNO, variances_MN)
    raw_NS = _numbers(rule["start"], x_NF).expand(len(x_NF), -1)
    n_outputs = raw_NS.shape[1]
    added_NT = _grown([tree for trees in rule["trees"] for tree in trees], x_NF)
    raw_NS = raw_NS + added_NT.view(len(x_NF), -1, n_outputs).sum(1)
    if answers_MNO.shape[2] == 1:
        return answers_MNO.mean(0) + raw_NS
    if raw_NS.shape[1] == 1:
        p_N1 = torch.sigmoid(raw_NS)
        return torch.cat([1.0 - p_N1, p_N1], dim=1)
    return torch.softmax(raw_NS, dim=1)


def _grown(trees: Sequence[Mapping[str, Any]], x_NF: Tensor) -> Tensor:
    """What each tree adds to each sample (N, T); every pass goes one level down, in all trees at once."""
    most = max(len(tree["feature"]) for tree in trees)

    def nodes(name: str, dtype: torch.dtype) -> Tensor:
        rows = [list(tree[name]) + [0] * (most - len(tree[name])) for tree in trees]
        return torch.tensor(rows, dtype=dtype, device=x_NF.device)

    feature_TX, left_TX, right_TX = (nodes(name, torch.int64) for name in ("feature", "left", "right"))
    threshold_TX, value_TX = (nodes(name, x_NF.dtype) for name in ("threshold", "value"))
    tree_T = torch.arange(len(trees), device=x_NF.device)
    node_NT = torch.zeros(len(x_NF), len(trees), dtype=torch.int64, device=x_NF.device)
    for _ in range(max(int(tree["depth"]) for tree in trees)):
        at_NT = feature_TX[tree_T, node_NT]
        seen_NT = x_NF.gather(1, at_NT.clamp_min(0))
        onward_NT = torch.where(
            seen_NT <= threshold_TX[tree_T, node_NT], left_TX[tree_T, node_NT], right_TX[tree_T, node_NT]
        )
        node_NT = torch.where(at_NT < 0, node_NT, onward_NT)
    return value_TX[tree_T, node_NT]


KINDS: dict[str, Callable[[Rule, Tensor, Tensor | None], Tensor]] = {
    "linear": _linear,
    "precision": _precision,
    "entropy": _entropy,
    "trees": boosted,
}
"""What applies a rule, by its kind."""
