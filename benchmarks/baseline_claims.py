"""Count how often a classical baseline is called better than an ensemble out of fold, where nothing differs in truth.

    python benchmarks/baseline_claims.py [--sets 800] [--quick]

Ensemble and baselines are ridge regressions on noise, each on noise of its own, in five folds of 40 people with a
target each. Rates are in percent, of "better" and of "worse", by the interval of the nested difference. The baseline is
named beforehand, or the best of three; or it is chosen anew for each sixth of the people by the others. The verdict
names the best of three and widens the interval. Promised is 2.5 a side. Real baselines resemble each
other more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from numpy.typing import NDArray

from raypipe.core.levels import within_folds
from raypipe.core.metrics import score
from raypipe.ensembles.comparisons import level_of_best
from raypipe.ensembles.oof import unit_groups
from raypipe.ensembles.scores import EvaluationSet, difference_interval

Array = NDArray[Any]
PEOPLE, FOLDS, FEATURES, PARTS, BASELINES, SEED = 40, 5, 20, 6, 3, 0
RULES = ("named beforehand", "best of three", "chosen anew by the others", "best of three, widened")


def ridge(y_S: Array, folds_S: Array, rng: np.random.Generator) -> Array:
    """Return out-of-fold predictions (S, 1) by noise."""
    x_SF, found = rng.standard_normal((PEOPLE, FEATURES)), np.empty(PEOPLE)
    for fold in range(FOLDS):
        train, mean = folds_S != fold, y_S[folds_S != fold].mean()
        gram = x_SF[train].T @ x_SF[train] + FEATURES * np.eye(FEATURES)
        found[~train] = mean + x_SF[~train] @ np.linalg.solve(gram, x_SF[train].T @ (y_S[train] - mean))
    return found[:, None]


def draw(metric: str, rng: np.random.Generator) -> tuple[Array, Array, list[Array]]:
    """Return targets, folds, and predictions of the ensemble and of the baselines."""
    folds_S = np.arange(PEOPLE) % FOLDS
    if metric == "nrmse":
        y_S: Array = rng.standard_normal(PEOPLE)
        return y_S, folds_S, [ridge(y_S, folds_S, rng) for _ in range(1 + BASELINES)]
    y_S = rng.permutation(PEOPLE // FOLDS)[np.arange(PEOPLE) // FOLDS] % 2  # as many of each class in each fold
    one = [1 / (1 + np.exp(-4 * (ridge(y_S, folds_S, rng) - 0.5))) for _ in range(1 + BASELINES)]
    return y_S, folds_S, [np.hstack([1 - p_S1, p_S1]) for p_S1 in one]


def claims(metric: str, rng: np.random.Generator) -> Array:
    """Return whether a baseline is called better and worse (rules, 2) in one set of people."""
    sign = 1 if metric == "nrmse" else -1
    y_S, folds_S, (shipped, *baselines) = draw(metric, rng)
    people = np.array([f"s{number:03d}" for number in range(PEOPLE)])
    rows = EvaluationSet(y_S, people, folds_S, None, True)
    best = min(baselines, key=lambda each: sign * rows.score(metric, each))
    anew, group_S = np.empty_like(best), unit_groups(people, y_S, PARTS)
    for part in np.unique(group_S):
        rest = group_S != part
        of = within_folds(metric, folds_S[rest])
        chosen = min(baselines, key=lambda each: np.nan_to_num(sign * score(of, y_S[rest], each[rest]), nan=np.inf))
        anew[~rest] = chosen[~rest]
    cases = ((baselines[0], 1), (best, 1), (anew, 1), (best, BASELINES))
    found = np.zeros((len(RULES), 2))
    for row, (each, choices) in zip(found, cases, strict=True):
        difference = difference_interval(metric, rows, each, shipped, level=level_of_best(choices))
        low, high = sorted((sign * difference.low, sign * difference.high))
        row[:] = high < 0, low > 0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=800, help="simulated sets of people")
    parser.add_argument("--quick", action="store_true", help="5 sets")
    args = parser.parse_args()
    sets = 5 if args.quick else args.sets
    print("| | " + " | ".join(RULES) + " |")
    print("|---" * (len(RULES) + 1) + "|")
    for metric in ("nrmse", "auc"):
        rng = np.random.default_rng(SEED)
        rates = 100 * np.mean([claims(metric, rng) for _ in range(sets)], axis=0)
        print(f"| {metric} | " + " | ".join(f"{better:.1f} {worse:.1f}" for better, worse in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
