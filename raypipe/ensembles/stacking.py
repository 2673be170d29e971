"""Stacking: ridge regression with non-negative weights, and gradient boosting on the members' predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.ensembles.oof import Floats, MemberPredictions, subject_splits
from raypipe.ensembles.sklearn_compat import boosted_trees
from raypipe.ensembles.weights import INNER_GROUPS, linear_rule
from raypipe.models.combine import Rule, tree_features

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Ridge penalties, relative to the members' mean square."""
BOOSTING_ROUNDS = 40


def ridge_stacking(members: MemberPredictions) -> Rule:
    """Fit non-negative least squares with a ridge towards equal weights, the penalty cross-validated over subjects.

    Regression has an intercept, and its weights may sum to less than one: predictions shrink to the mean where the
    members know little. Weights of classes are scaled to sum to one. Several values share the weights, which are fitted
    on all of them in standard deviations of their targets; each has an intercept of its own. Where scores are of
    people, the fit is to each person's mean predictions.
    """
    members = members.at_level()
    losses_P = np.zeros(len(PENALTIES))
    for fit_N, test_N in subject_splits(members, INNER_GROUPS):
        fit, test = members.select_windows(fit_N), members.select_windows(test_N)
        for index, penalty in enumerate(PENALTIES):
            combined_NO = test.combine(_fit_ridge(fit, penalty))
            losses_P[index] += (((combined_NO - test.encoded_targets) / members.error_units) ** 2).sum()
    return _fit_ridge(members, PENALTIES[int(losses_P.argmin())])


def _fit_ridge(members: MemberPredictions, penalty: float) -> Rule:
    from scipy.optimize import nnls

    regression = members.kind == "regression"
    x_MNO, y_NO = members.predictions, members.encoded_targets
    mean_MO, mean_O = (x_MNO.mean(1), y_NO.mean(0)) if regression else (np.zeros((len(x_MNO), 1)), np.zeros(1))
    x_XM = ((x_MNO - mean_MO[:, None]) / members.error_units).reshape(len(x_MNO), -1).T
    y_X = ((y_NO - mean_O) / members.error_units).ravel()
    unit = float(np.sqrt(np.mean(x_XM**2))) or 1.0  # so that weights do not depend on the unit of the targets
    x_XM, y_X = x_XM / unit, y_X / unit
    n, ridge = len(x_MNO), penalty * len(y_X)
    gram_MM = x_XM.T @ x_XM + (ridge + 1e-9) * np.eye(n)
    moment_M = x_XM.T @ y_X + ridge / n
    lower_MM = np.linalg.cholesky(gram_MM)
    weights_M = nnls(lower_MM.T, np.linalg.solve(lower_MM, moment_M))[0]
    if regression:
        intercept_O = (mean_O - weights_M @ mean_MO).tolist()
        return linear_rule(weights_M, intercept_O if len(intercept_O) > 1 else intercept_O[0])
    total = weights_M.sum()
    return linear_rule(weights_M / total if total > 0 else np.full(n, 1.0 / n))


def boosting(members: MemberPredictions) -> Rule:
    """Fit scikit-learn's histogram gradient boosting on `combine.tree_features`.

    Trees are few and shallow, and their leaves large. Fitting does not stop early, because scikit-learn would split
    windows instead of subjects.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    variances = None if members.variances is None else torch.from_numpy(members.variances)
    x_NF = tree_features(torch.from_numpy(members.predictions), variances).numpy()
    options: dict[str, Any] = {
        "max_iter": BOOSTING_ROUNDS,
        "max_depth": 2,
        "learning_rate": 0.05,
        "min_samples_leaf": max(20, len(x_NF) // 50),
        "early_stopping": False,
        "random_state": 0,
        "l2_regularization": 1.0,
    }
    weights_N = members.window_weights if members.level == "person" else None
    # On a busy machine, OpenMP threads that wait for each other take a hundred times as long as one thread.
    with threadpool_limits(1, user_api="openmp"):
        if members.kind == "regression":
            residuals_N = members.targets - members.predictions.mean(0)[:, 0]
            model = HistGradientBoostingRegressor(**options).fit(x_NF, residuals_N, sample_weight=weights_N)
        else:
            model = HistGradientBoostingClassifier(**options).fit(x_NF, members.targets, sample_weight=weights_N)
    grown, sorted_NF = boosted_trees(model), np.sort(x_NF, axis=0)
    trees = [[_tree(nodes, sorted_NF) for nodes in outputs] for outputs in grown.rounds]
    return {"kind": "trees", "start": grown.start.tolist(), "trees": trees}


def _tree(nodes: NDArray[Any], sorted_NF: Floats) -> dict[str, Any]:
    """Return a tree as lists.

    Thresholds move to the middle between the two values that they separate, so that rounding cannot send a window to
    the other side.
    """
    leaf = nodes["is_leaf"].astype(bool)
    threshold = np.where(leaf, 0.0, nodes["num_threshold"])
    for node in np.flatnonzero(~leaf):
        column_N = sorted_NF[:, nodes["feature_idx"][node]]
        above = int(np.searchsorted(column_N, threshold[node], side="right"))
        if 0 < above < len(column_N):
            threshold[node] = 0.5 * (column_N[above - 1] + column_N[above])
    return {
        "feature": np.where(leaf, -1, nodes["feature_idx"]).tolist(),
        "threshold": threshold.tolist(),
        "left": nodes["left"].astype(int).tolist(),
        "right": nodes["right"].astype(int).tolist(),
        "value": np.where(leaf, nodes["value"], 0.0).tolist(),
        "depth": int(nodes["depth"].max()),
    }


def not_boosted(members: MemberPredictions) -> str | None:
    """Return why predictions cannot be boosted, or None."""
    if members.targets.ndim == 2:
        return f"it combines one value or classes, and this target has {members.targets.shape[1]} values"
    if members.kind == "classification" and len(np.unique(members.targets)) < members.predictions.shape[2]:
        return "a class does not occur among the subjects that it is fitted on"
    return None
