"""Ways to combine members: ``fit(members)`` looks at out-of-fold answers of some subjects and gives a rule.

A rule (`raypipe.models.combine`) is applied to answers of any other subject. Whatever a method chooses inside (a
temperature, a penalty), it chooses by cross-validation over the subjects that it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.core.folds import Index
from raypipe.core.metrics import get_metric, score
from raypipe.ensembles.oof import Floats, Members
from raypipe.ensembles.weights import confidence, no_confidence_reason, per_sample
from raypipe.models.combine import Rule, tree_features

INNER = 4
"""Groups of subjects that a method's own choices are cross-validated over."""

TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 100.0)
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
BAGS, PICKS = 10, 15
ROUNDS = 40


@dataclass(frozen=True)
class Method:
    """A way to combine members."""

    name: str
    words: str
    """What it does, in a few words."""
    fit: Callable[[Members], Rule]
    refusal: Callable[[Members], str | None] = lambda members: None
    """Why it cannot be used with these members, or None."""


def draw_folds(members: Members, n: int) -> Index:
    """Deal subjects into at most `n` groups of like targets (N,): subjects in order of their mean target, in turn.

    The same subjects and targets are always dealt alike.
    """
    names, index_N = np.unique(members.subjects, return_inverse=True)
    means_S = np.bincount(index_N, weights=members.targets.astype(np.float64)) / np.bincount(index_N)
    n = min(n, len(names))
    group_S = np.empty(len(names), np.int64)
    rng = np.random.default_rng(0)
    order = np.argsort(means_S, kind="stable")
    for start in range(0, len(order), n):
        some = order[start : start + n]
        group_S[some] = rng.permutation(n)[: len(some)]
    return np.asarray(np.unique(group_S, return_inverse=True)[1][index_N])


def splits(members: Members, n: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Masks (N,) of the windows to fit on and of those to judge by, for every group of subjects."""
    groups_N = draw_folds(members, n)
    for group in range(int(groups_N.max()) + 1):
        yield groups_N != group, groups_N == group


def linear(weights: Floats, intercept: float = 0.0) -> Rule:
    """A rule of fixed weights."""
    return {"kind": "linear", "weights": [float(w) for w in weights], "intercept": float(intercept)}


def ranking(members: Members) -> list[int]:
    """Places of the members, best score first; a score that is undefined comes last."""
    sign = get_metric(members.metric).sign
    return [int(place) for place in np.argsort(np.nan_to_num(sign * members.scores(), nan=np.inf), kind="stable")]


def _best(members: Members) -> Rule:
    return linear(np.eye(len(members.names))[ranking(members)[0]])


def _equal(members: Members) -> Rule:
    return linear(np.full(len(members.names), 1.0 / len(members.names)))


def _average(members: Members) -> Rule:
    """Equal weights over the best members; how many is the number whose mean scores best."""
    metric, order = get_metric(members.metric), ranking(members)
    means_MNO = np.cumsum(members.answers[order], axis=0) / np.arange(1, len(order) + 1)[:, None, None]
    count, reached = 1, np.nan
    for place, mean_NO in enumerate(means_MNO):
        found = score(members.metric, members.targets, mean_NO)
        if metric.better(found, reached):
            count, reached = place + 1, found
    return linear(np.isin(np.arange(len(order)), order[:count]) / count)


def _snapshots(members: Members) -> Rule:
    """Equal weights over the best trial that has snapshots: what one training gives (Huang et al. 2017)."""
    inside_M = np.isin(np.arange(len(members.names)), with_snapshots(members))
    return linear(inside_M / inside_M.sum())


def with_snapshots(members: Members) -> list[int]:
    """Places of the best member whose trial has others too, and of these; of the best one alone where none has."""
    trials = members.trials or list(range(len(members.names)))
    order = ranking(members)
    best = next((trials[place] for place in order if trials.count(trials[place]) > 1), trials[order[0]])
    return [place for place, trial in enumerate(trials) if trial == best]


def _no_snapshots(members: Members) -> str | None:
    if members.trials is None or len(set(members.trials)) == len(members.trials):
        return "no trial has kept snapshots; they come with optim/schedule=cyclic"
    return None


def _inverse(members: Members) -> Rule:
    errors_M = np.maximum(members.errors, 1e-12 * members.errors.max() + 1e-300)
    return linear((1 / errors_M) / np.sum(1 / errors_M))


def _power(members: Members) -> Rule:
    return linear(confidence([*members.answers], members.targets, members.kind))


def _cooled(errors_M: Floats, temperature: float) -> Floats:
    excess_M = (errors_M - errors_M.min()) / max(float(errors_M.min()), 1e-300)
    shares_M = np.exp(-excess_M / temperature)
    return np.asarray(shares_M / shares_M.sum())


def _softmax(members: Members) -> Rule:
    """Softmax of the errors, whose temperature is chosen by cross-validation over subjects."""
    wrong_MNO = members.answers - members.goals
    found_T = np.zeros(len(TEMPERATURES))
    for fit_N, judge_N in splits(members, INNER):
        errors_M = (wrong_MNO[:, fit_N] ** 2).sum(2).mean(1)
        for place, temperature in enumerate(TEMPERATURES):
            mixed_NO = np.tensordot(_cooled(errors_M, temperature), wrong_MNO[:, judge_N], 1)
            found_T[place] += (mixed_NO**2).sum()
    return linear(_cooled(members.errors, TEMPERATURES[int(found_T.argmin())]))


# Selection and stacking


def _scores_of(members: Members, mixed_CNO: Floats) -> Floats:
    """Losses (C,), lower is better, of candidate mixtures by the task's metric; AUC by ranks, all at once."""
    if members.metric == "nrmse":
        return np.asarray(((mixed_CNO - members.goals) ** 2).sum(2).mean(1))
    if members.metric == "auc":
        from scipy.stats import rankdata

        outputs = [1] if mixed_CNO.shape[2] == 2 else range(mixed_CNO.shape[2])
        total_C = np.zeros(len(mixed_CNO))
        for k in outputs:
            positive_N = members.targets == k
            n1 = int(positive_N.sum())
            n0 = len(positive_N) - n1
            if not n1 or not n0:
                return np.asarray(((mixed_CNO - members.goals) ** 2).sum(2).mean(1))
            ranks_C = rankdata(mixed_CNO[:, :, k], axis=1)[:, positive_N].sum(1)
            total_C += (ranks_C - n1 * (n1 + 1) / 2) / (n1 * n0)
        return -total_C / len(outputs)
    sign = get_metric(members.metric).sign
    return np.array([sign * score(members.metric, members.targets, mixed_NO) for mixed_NO in mixed_CNO])


def _picked(members: Members, places: Sequence[int], picks: int) -> NDArray[np.int64]:
    """Pick with replacement whoever makes the mean best; the counts (M,) at the best number of picks (Caruana 2004)."""
    counts = np.zeros(len(members.names), np.int64)
    some = np.array(places)
    kept, least = counts, np.inf
    if members.metric == "nrmse":  # squared errors of all mixtures follow from the errors' products
        wrong_MX = (members.answers - members.goals).reshape(len(members.names), -1)
        products_MM = wrong_MX @ wrong_MX.T / wrong_MX.shape[1]
    total_NO = np.zeros_like(members.goals)
    for pick in range(1, picks + 1):
        if members.metric == "nrmse":
            crossed_M = products_MM @ counts
            losses_C = (counts @ crossed_M + 2 * crossed_M[some] + np.diag(products_MM)[some]) / pick**2
        else:
            losses_C = _scores_of(members, (total_NO + members.answers[some]) / pick)
        place = int(some[losses_C.argmin()])
        counts = counts + (np.arange(len(counts)) == place)
        total_NO = total_NO + members.answers[place]
        if losses_C.min() < least - 1e-12:
            kept, least = counts, float(losses_C.min())
    return kept


def _greedy(members: Members) -> Rule:
    """Greedy selection with replacement (Caruana et al. 2004), bagged: the mean of picks on parts of the subjects.

    Caruana et al. (2006) draw half of the members for each bag, of hundreds; of few, a bag would lack the best ones.
    """
    rng = np.random.default_rng(0)
    names = np.unique(members.subjects)
    weights_M = np.zeros(len(members.names))
    for _ in range(BAGS):
        drawn = rng.choice(names, size=max(1, round(0.75 * len(names))), replace=False)
        counts_M = _picked(members.rows(np.isin(members.subjects, drawn)), range(len(members.names)), PICKS)
        weights_M += counts_M / counts_M.sum()
    return linear(weights_M / weights_M.sum())


def forward(members: Members, n: int) -> list[int]:
    """Places of `n` members that complement each other: the best one, then whoever makes the equal mean best."""
    places: list[int] = []
    total_NO = np.zeros_like(members.goals)
    while len(places) < min(n, len(members.names)):
        left = [place for place in range(len(members.names)) if place not in places]
        losses_C = _scores_of(members, (total_NO + members.answers[left]) / (len(places) + 1))
        places.append(left[int(losses_C.argmin())])
        total_NO = total_NO + members.answers[places[-1]]
    return places


def _ridge(members: Members) -> Rule:
    """Non-negative least squares with a ridge towards equal weights, its penalty by cross-validation over subjects.

    Regression has an intercept, and weights may sum to less than one: what cannot be predicted is shrunk to the mean.
    Class weights are scaled to sum to one.
    """
    found_P = np.zeros(len(PENALTIES))
    for fit_N, judge_N in splits(members, INNER):
        inside, outside = members.rows(fit_N), members.rows(judge_N)
        for place, penalty in enumerate(PENALTIES):
            mixed_NO = outside.combined(_ridge_with(inside, penalty))
            found_P[place] += ((mixed_NO - outside.goals) ** 2).sum()
    return _ridge_with(members, PENALTIES[int(found_P.argmin())])


def _ridge_with(members: Members, penalty: float) -> Rule:
    from scipy.optimize import nnls

    x_XM = members.answers.reshape(len(members.names), -1).T
    y_X = members.goals.ravel()
    middle_M, middle = np.zeros(x_XM.shape[1]), 0.0
    if members.kind == "regression":
        middle_M, middle = x_XM.mean(0), float(y_X.mean())
    x_XM, y_X = x_XM - middle_M, y_X - middle
    n = len(middle_M)
    ridge = penalty * max(float(np.mean(x_XM**2)) * len(y_X), 1e-12)
    inner_MM = x_XM.T @ x_XM + (ridge + 1e-9) * np.eye(n)
    goal_M = x_XM.T @ y_X + ridge / n
    lower_MM = np.linalg.cholesky(inner_MM)
    weights_M = nnls(lower_MM.T, np.linalg.solve(lower_MM, goal_M))[0]
    if members.kind == "regression":
        return linear(weights_M, middle - float(weights_M @ middle_M))
    total = weights_M.sum()
    return linear(weights_M / total if total > 0 else np.full(n, 1.0 / n))


def _boosting(members: Members) -> Rule:
    """Histogram gradient boosting (scikit-learn) on `combine.tree_features`: few and shallow trees, large leaves.

    No early stopping: scikit-learn's splits windows, not subjects.
    """
    return _trees(members, ROUNDS)


def _trees(members: Members, rounds: int) -> Rule:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    told = None if members.variances is None else torch.from_numpy(members.variances)
    x_NF = tree_features(torch.from_numpy(members.answers), told).numpy()
    leaf = max(20, len(x_NF) // 50)
    how: dict[str, Any] = {"max_iter": rounds, "max_depth": 2, "learning_rate": 0.05, "min_samples_leaf": leaf}
    how |= {"early_stopping": False, "random_state": 0, "l2_regularization": 1.0}
    # So little data gains nothing by threads, which on a busy machine spin for each other: a hundred times the time.
    with threadpool_limits(1, user_api="openmp"):
        if members.kind == "regression":
            left_N = members.targets - members.answers.mean(0)[:, 0]
            grown = HistGradientBoostingRegressor(**how).fit(x_NF, left_N)
        else:
            grown = HistGradientBoostingClassifier(**how).fit(x_NF, members.targets)
    trees = [[_nodes(tree.nodes, np.sort(x_NF, axis=0)) for tree in one] for one in grown._predictors]
    return {"kind": "trees", "start": np.ravel(grown._baseline_prediction).tolist(), "trees": trees}


def _nodes(nodes: NDArray[Any], sorted_NF: Floats) -> dict[str, Any]:
    """A tree as lists. Thresholds move to the middle between the values that they part, where no rounding reaches."""
    leaf = nodes["is_leaf"].astype(bool)
    threshold = np.where(leaf, 0.0, nodes["num_threshold"])
    for place in np.flatnonzero(~leaf):
        column_N = sorted_NF[:, nodes["feature_idx"][place]]
        above = int(np.searchsorted(column_N, threshold[place], side="right"))
        if 0 < above < len(column_N):
            threshold[place] = 0.5 * (column_N[above - 1] + column_N[above])
    return {
        "feature": np.where(leaf, -1, nodes["feature_idx"]).tolist(),
        "threshold": threshold.tolist(),
        "left": nodes["left"].astype(int).tolist(),
        "right": nodes["right"].astype(int).tolist(),
        "value": np.where(leaf, nodes["value"], 0.0).tolist(),
        "depth": int(nodes["depth"].max()),
    }


def _too_few_classes(members: Members) -> str | None:
    if members.kind == "classification" and len(np.unique(members.targets)) < members.answers.shape[2]:
        return "a class does not occur among the subjects that it is fitted on"
    return None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("best", "the best single member", _best),
        Method("equal", "equal weights over all members", _equal),
        Method("snapshots", "equal weights over the best trial and its snapshots", _snapshots, _no_snapshots),
        Method("average", "equal weights over the best n members", _average),
        Method("inverse-mse", "weights by inverse mean squared error", _inverse),
        Method("confidence", "weights by a power of the inverse mean squared error", _power),
        Method("softmax", "weights by a softmax of the errors, its temperature cross-validated", _softmax),
        Method("sample", "weights a sample, by entropy or told variance", lambda m: per_sample(m, by_member=False),
               no_confidence_reason),
        Method("member-sample", "weights by member and sample", lambda m: per_sample(m, by_member=True),
               no_confidence_reason),
        Method("greedy", "greedy selection with replacement, bagged", _greedy),
        Method("ridge", "non-negative ridge stacking", _ridge),
        Method("boosting", "gradient boosting on confidence features", _boosting, _too_few_classes),
    )
}  # fmt: skip
"""Methods by name, the simpler first: of equals, the first is chosen."""
