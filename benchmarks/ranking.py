"""Simulate how trials are ranked: offsets between folds, targets of people, and few people in a fold.

    python -m benchmarks.ranking [--quick]

It prints the tables of section "Ranking of trials" in RESULTS.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from raypipe.core.levels import ranking_score
from raypipe.core.metrics import score

Floats = NDArray[np.float64]

PEOPLE, EACH, FOLDS = 30, 40, 5
SEPARATION = {0.80: 1.19, 0.76: 1.0}
"""Distance of the classes' means, in standard deviations, by AUC."""


def probabilities(logit_N: Floats) -> Floats:
    """Return the probabilities (N, 2) of two classes."""
    p_N = 1 / (1 + np.exp(-logit_N))
    return np.stack([1 - p_N, p_N], axis=1)


def ranks(rng: np.random.Generator, offset: float) -> tuple[list[float], list[bool]]:
    """Return the scores of a trial of AUC .80 whose folds have offsets, and whether it is ranked above one of AUC .76.

    Both are by all folds together, and within folds.
    """
    subject_N = np.repeat(np.arange(PEOPLE), EACH)
    fold_N = subject_N % FOLDS
    y_N = rng.integers(0, 2, len(subject_N))
    good_N, worse_N = (gap * y_N + rng.normal(size=len(y_N)) for gap in SEPARATION.values())
    good_N = good_N + offset * rng.normal(size=FOLDS)[fold_N]
    pair = [probabilities(good_N), probabilities(worse_N)]
    pooled = [score("auc", y_N, each) for each in pair]
    inside = [ranking_score("auc", "window", y_N, each, subject_N, fold_N) for each in pair]
    return [pooled[0], inside[0]], [pooled[0] > pooled[1], inside[0] > inside[1]]


def people(rng: np.random.Generator) -> list[bool]:
    """Return whether the trial that knows people better is ranked first, by windows and by people.

    It has the smaller error of a person's mean, and much more noise in single windows.
    """
    subject_N = np.repeat(np.arange(PEOPLE), EACH)
    trait_N = rng.normal(size=PEOPLE)[subject_N]
    better, worse = (
        (trait_N + error * rng.normal(size=PEOPLE)[subject_N] + noise * rng.normal(size=len(subject_N)))[:, None]
        for error, noise in ((0.6, 1.0), (0.9, 0.2))
    )
    fold_N = subject_N % FOLDS
    by_level = []
    for level in ("window", "person"):
        a, b = (ranking_score("nrmse", level, trait_N, each, subject_N, fold_N) for each in (better, worse))
        by_level.append(a < b)
    return by_level


def null_few(rng: np.random.Generator, n: int) -> list[float]:
    """Return AUCs of noise over `n` people with a class each: all folds together, mean of folds, weighted by pairs.

    Folds are stratified.
    """
    people_N = np.arange(n)
    y_N, fold_N = people_N % 2, people_N // 2 % FOLDS
    pred = probabilities(rng.normal(size=n))
    plain = [score("auc", y_N[fold_N == k], pred[fold_N == k]) for k in range(FOLDS)]
    return [score("auc", y_N, pred), float(np.mean(plain)), ranking_score("auc", "person", y_N, pred, people_N, fold_N)]


def measure(args: argparse.Namespace) -> report.Result:
    """Simulate the tables."""
    repeats = 5 if args.quick else 300
    found = report.result(f"Ranking of trials: {repeats} repeats, {PEOPLE} people x {EACH} windows, {FOLDS} folds")
    rows = []
    for offset in (0.0, 0.5, 1.0, 2.0):
        rng = np.random.default_rng(args.seed)
        scores, right = zip(*(ranks(rng, offset) for _ in range(repeats)), strict=True)
        (pooled, inside), (a, b) = np.mean(scores, axis=0), np.mean(right, axis=0)
        rows.append((f"{offset:g}", f"{pooled:.3f}", f"{inside:.3f}", f"{100 * a:.0f} %", f"{100 * b:.0f} %"))
    head = ("SD of the offsets (logits)", "AUC, all folds", "within folds", "right choice", "right choice within folds")
    report.add_table(found, "Offsets between folds", head, rows)
    rng = np.random.default_rng(args.seed)
    by_window, by_person = np.mean([people(rng) for _ in range(repeats)], axis=0)
    chosen = [("windows", f"{100 * by_window:.0f} %"), ("people", f"{100 * by_person:.0f} %")]
    report.add_table(found, "Targets of people", ("ranked by", "right choice"), chosen)
    of_few = []
    for n in (12, 24, 48):
        rng = np.random.default_rng(args.seed)
        drawn = np.array([null_few(rng, n) for _ in range(repeats)])
        cells = [f"{mean:.3f}, {sd:.3f}" for mean, sd in zip(drawn.mean(0), drawn.std(0), strict=True)]
        of_few.append([str(n), *cells])
    few = ("people", "all folds together, SD", "mean of folds, SD", "weighted by pairs, SD")
    report.add_table(found, "AUC of noise", few, of_few)
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few repeats")
    parser.add_argument("--seed", type=int, default=0)
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
