"""Rate at which `raypipe chance` finds something where there is nothing, on simulated searches.

A search chooses among ridge regressions on subsets of random features by inner cross-validation, then predicts
held-out people: once (a run), or in every part of an outer cross-validation, where shuffling is no test. Targets are
random, so p should be uniform. Another table is of people with several targets each, whose predictions are noise and an
offset of each recording or block: exchanged one by one, windows of one recording seem to differ.

    python benchmarks/chance.py [--searches 200] [--permutations 199]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstest

from benchmarks import report
from raypipe.core.levels import ScoredRows
from raypipe.core.metrics import score
from raypipe.ensembles.chance import permute

FEATURES, CONFIGURATIONS, PARTS = 60, 8, 5
PEOPLE = 8
DESIGNS = {
    "two recordings of 20 windows, a class each": [[(0, 20)], [(1, 20)]],
    "two recordings of 45 and 15 windows, a class each": [[(0, 45)], [(1, 15)]],
    "one recording of 6 blocks of 10 windows, classes in turn": [[(block % 2, 10) for block in range(6)]],
    "two recordings of 20 trials in random order": [[(-1, 20)], [(-1, 20)]],
}
"""Recordings of a person: each the class and the windows of its blocks. Class -1: trials, of both classes."""
Floats = NDArray[np.float64]


def fit_predict(x: Floats, y: Floats, train: NDArray[Any], test: NDArray[Any], chosen: tuple[Any, float]) -> Floats:
    """Predict test people by ridge regression on some features."""
    features, penalty = chosen
    a, mean = x[np.ix_(train, features)], y[train].mean()
    weights = a.T @ np.linalg.solve(a @ a.T + penalty * np.eye(len(train)), y[train] - mean)
    return np.asarray(mean + x[np.ix_(test, features)] @ weights)


def search(x: Floats, y: Floats, people: NDArray[Any], rng: np.random.Generator) -> tuple[Any, float]:
    """Choose the configuration with the best out-of-fold error."""
    folds = np.array_split(rng.permutation(people), 4)
    best: tuple[float, Any] = (np.inf, None)
    for _ in range(CONFIGURATIONS):
        chosen = (rng.choice(FEATURES, FEATURES // 2, replace=False), 10 ** rng.uniform(0, 3))
        errors = [fit_predict(x, y, np.setdiff1d(people, fold), fold, chosen) - y[fold] for fold in folds]
        best = min(best, (float(np.mean(np.concatenate(errors) ** 2)), chosen), key=lambda each: each[0])
    return best[1]  # type: ignore[no-any-return]


def one_search(kind: str, outer: bool, n: int, permutations: int, seed: int) -> float:
    """Return p of a search on random targets."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, FEATURES))
    y = rng.normal(size=n) if kind == "value" else (rng.permutation(n) < n // 2).astype(float)
    order = rng.permutation(n)
    if kind == "class":  # each part has both
        order = order[np.argsort(y[order], kind="stable")]
    parts = [order[number::PARTS] for number in range(PARTS)]
    predicted, part_N = np.zeros(n), np.zeros(n, dtype=int)
    for number, held in enumerate(parts if outer else parts[:1]):
        people = np.setdiff1d(np.arange(n), held)
        predicted[held] = fit_predict(x, y, people, held, search(x, y, people, rng))
        part_N[held] = number
    scored = np.arange(n) if outer else np.sort(parts[0])
    targets, p = (y, predicted) if kind == "value" else (y.astype(int), predicted)
    outputs = p[:, None] if kind == "value" else np.stack([1 - p, p], axis=1)
    rows = ScoredRows(targets[scored], scored, part_N[scored], outputs[scored])
    return permute("nrmse" if kind == "value" else "brier", "person", rows, permutations, seed).p


def rows_of_people(design: str, offset: float, rng: np.random.Generator) -> tuple[ScoredRows, NDArray[Any]]:
    """Return predictions that are noise and an offset of each block, and the recording of each window."""
    subjects: list[int] = []
    recordings: list[str] = []
    targets: list[int] = []
    logits: list[float] = []
    for person in range(PEOPLE):
        for number, blocks in enumerate(DESIGNS[design]):
            for kind, n in blocks:
                subjects += [person] * n
                recordings += [f"{person}-{number}"] * n
                share = 0.3 + 0.4 * number  # of the second class: recordings of trials differ in it
                targets += (rng.permutation(n) < round(share * n)).astype(int).tolist() if kind < 0 else [kind] * n
                logits += (offset * rng.normal() + rng.normal(size=n)).tolist()
    p = 1 / (1 + np.exp(-np.array(logits)))
    folds = np.zeros(len(p), dtype=int)
    return ScoredRows(np.array(targets), np.array(subjects), folds, np.stack([1 - p, p], 1)), np.array(recordings)


def one_test_within(design: str, offset: float, alone: bool, permutations: int, seed: int) -> float:
    """Return p within people; `alone`: of windows that are exchanged one by one within each person."""
    rng = np.random.default_rng(seed)
    rows, recordings = rows_of_people(design, offset, rng)
    if not alone:
        return permute("auc", "window", rows, permutations, seed, recordings=recordings).p
    targets, own = rows.targets.copy(), [np.flatnonzero(rows.subjects == person) for person in range(PEOPLE)]
    observed, null = score("auc", targets, rows.predictions), []
    for _ in range(permutations):
        for place in own:
            targets[place] = rng.permutation(rows.targets[place])
        null.append(score("auc", targets, rows.predictions))
    return float((1 + np.sum(np.array(null) >= observed - 1e-12)) / (1 + permutations))


def add_table_within(found: report.Result, searches: int, permutations: int) -> None:
    """Add the rates of tests within people."""
    rows = []
    for design in DESIGNS:
        for offset in (0.0, 0.5, 1.0):
            rates = []
            for alone in (False, True):
                p = np.array([one_test_within(design, offset, alone, permutations, seed) for seed in range(searches)])
                rates += [f"{np.mean(p <= level):.3f}" for level in (0.05, 0.1)]
            rows.append((design, f"{offset:g}", *rates))
    head = ("targets", "offsets (SD)", "p <= 0.05", "p <= 0.1", "p <= 0.05, one by one", "p <= 0.1, one by one")
    report.add_table(found, f"Several targets of each of {PEOPLE} people", head, rows)


def measure(args: argparse.Namespace) -> report.Result:
    """Simulate the table."""
    searches = 5 if args.quick else args.searches
    found = report.result(f"`raypipe chance` on random targets: {searches} searches, {args.permutations} permutations")
    rows = []
    for kind in ("value", "class"):
        for n, outer in ((40, False), (100, False), (20, True), (36, True), (100, True)):
            p = np.array([one_search(kind, outer, n, args.permutations, seed) for seed in range(searches)])
            rates = [f"{np.mean(p <= level):.3f}" for level in (0.05, 0.1, 0.5)]
            held = "everyone, outer" if outer else f"{len(np.array_split(np.arange(n), PARTS)[0])}"
            rows.append((f"a {kind} per person", str(n), held, *rates, f"{kstest(p, 'uniform').pvalue:.3f}"))
    head = ("target", "people", "held out", "p <= 0.05", "p <= 0.1", "p <= 0.5", "Kolmogorov-Smirnov p")
    report.add_table(found, "Distribution of p", head, rows)
    add_table_within(found, searches, args.permutations)
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--permutations", type=int, default=199)
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
