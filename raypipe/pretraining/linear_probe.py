"""A linear probe: how well targets can be predicted from a network's features by a linear map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.core.outputs import spread_of

RIDGE_STRENGTHS = tuple(float(v) for v in np.logspace(-2, 6, 9))
"""Penalties of the ridge. The largest predict the mean: no person's target may be seen in the features."""
MAX_PARTS = 5
"""Parts that the subjects, or their groups, are split into, to choose the penalty."""


def fit_probe(
    x_NF: NDArray[np.float32], targets_N: NDArray[Any], groups_N: NDArray[Any], n_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a linear map from features to targets: ridge regression, or logistic regression with a fixed penalty.

    The penalty of the ridge is chosen by predictions of subjects, or groups, that are left out, not of windows: where
    the target is the person's, the other windows of a person give it away, and the penalty would be far too small for
    new people.
    Features are standardised for the fit; the result applies to features as they are.

    Parameters
    ----------
    x_NF
        (N, F) features of training windows.
    targets_N
        (N,) values, (N, K) several values, of which each counts the same in the choice of the penalty, or classes.
    groups_N
        (N,) group of each window's subject (`FoldMap.groups`), or the subject where there are none. With one only,
        windows are left out.
    n_classes
        Number of classes; 0 for regression.

    Returns
    -------
    weight, bias
        (O, F) and (O,): values, or logits of the classes.
    """
    from sklearn.linear_model import LogisticRegression, RidgeCV

    centre_F, spread_F = x_NF.mean(0, dtype=np.float64), x_NF.std(0, dtype=np.float64)
    spread_F[spread_F < 1e-6] = 1.0
    z_NF = (x_NF - centre_F) / spread_F
    weight = np.zeros((n_classes or 1, x_NF.shape[1]))
    bias = np.zeros(n_classes or 1)
    if targets_N.ndim == 2:
        scale_K = spread_of(targets_N)
        ridge = RidgeCV(alphas=RIDGE_STRENGTHS, **_groups_left_out(z_NF, groups_N)).fit(z_NF, targets_N / scale_K)
        weight, bias = ridge.coef_ * scale_K[:, None], ridge.intercept_ * scale_K
    elif not n_classes:
        ridge = RidgeCV(alphas=RIDGE_STRENGTHS, **_groups_left_out(z_NF, groups_N)).fit(z_NF, targets_N)
        weight[0], bias[0] = ridge.coef_, ridge.intercept_
    elif len(present := np.unique(targets_N)) == 1:
        bias[present[0]] = 10.0
    else:
        logistic = LogisticRegression(class_weight="balanced", max_iter=500, C=0.1).fit(z_NF, targets_N)
        bias[:] = -30.0  # for classes without a window
        rows = np.vstack((np.zeros_like(logistic.coef_), logistic.coef_)) if len(present) == 2 else logistic.coef_
        offsets = np.array([0.0, logistic.intercept_[0]]) if len(present) == 2 else logistic.intercept_
        weight[present], bias[present] = rows, offsets
    weight = weight / spread_F
    bias = bias - weight @ centre_F
    return torch.tensor(weight, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32)


def _groups_left_out(x_NF: NDArray[np.float64], groups_N: NDArray[Any]) -> dict[str, Any]:
    """Return the options of `RidgeCV` that leave out parts of the groups; none for one group."""
    from sklearn.model_selection import GroupKFold

    parts = min(MAX_PARTS, len(np.unique(groups_N)))
    if parts < 2:
        return {}
    splits = list(GroupKFold(parts).split(x_NF, groups=groups_N))
    return {"cv": splits, "scoring": "neg_mean_squared_error"}
