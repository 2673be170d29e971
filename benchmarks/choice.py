"""Time the choice that `raypipe ensemble --method auto` makes by nested scores, and measure its peak memory.

    python benchmarks/choice.py [--trials 50] [--windows 100000] [--epochs 4]

Predictions are drawn: of the label, the trial, its epoch, the person and the window. A fresh process for each kind of
target chooses once. Its peer computes the AUC of each trial and epoch by scikit-learn once, on the same windows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks import report
from raypipe.core.metrics import Kind
from raypipe.ensembles.methods import auto_methods
from raypipe.ensembles.nested_cv import run_nested_cv
from raypipe.ensembles.oof import MemberPredictions
from raypipe.ensembles.trial_pool import PooledTrial, TrialPool
from raypipe.storage.out_of_fold import EpochPredictions

PEOPLE, FOLDS, TOP = 200, 5, 10
KINDS: tuple[Kind, ...] = ("classification", "regression")
GOALS = {"seconds": 60.0, "GB": 4.0}


class Search:
    """Out-of-fold predictions of a search of one kind of target, drawn when they are read."""

    def __init__(self, kind: Kind, windows: int) -> None:
        rng = np.random.default_rng(0)
        label_S = np.arange(PEOPLE) % 2 if kind == "classification" else rng.normal(size=PEOPLE)
        self.kind, self.subject_N = kind, np.arange(windows) * PEOPLE // windows
        self.y_N = np.asarray(label_S)[self.subject_N]

    def values(self, trial: int, epoch: int) -> NDArray[np.float32]:
        """Return values (N, 1), or the probabilities (N, 2) of both classes."""
        rng = np.random.default_rng([trial, epoch])
        noise_N = 0.5 * rng.normal(size=PEOPLE)[self.subject_N] + rng.normal(size=len(self.y_N))
        value_N = (0.3 + 0.01 * trial / (1 + epoch)) * self.y_N + 0.4 * noise_N
        if self.kind == "regression":
            return value_N[:, None].astype(np.float32)
        p_N = 1 / (1 + np.exp(-value_N))
        return np.stack([1 - p_N, p_N], axis=-1).astype(np.float32)

    def pool(self, trials: int, epochs: int) -> TrialPool:
        """Return the pool of all trials and epochs."""
        like = MemberPredictions(
            names=["like"],
            predictions=self.values(0, 1)[None].astype(np.float64),
            targets=self.y_N,
            subjects=np.array([f"s{number:03d}" for number in self.subject_N]),
            folds=self.subject_N % FOLDS,
            windows=np.arange(len(self.y_N)),
            metric="auc" if self.kind == "classification" else "nrmse",
            kind=self.kind,
            level="window",
        )
        pooled = [PooledTrial(number, tuple(range(1, epochs + 1))) for number in range(trials)]
        return TrialPool(pooled, lambda one: EpochPredictions(self.values(one.trial, one.epoch)), like, TOP)


def choose(kind: Kind, trials: int, windows: int, epochs: int) -> dict[str, float]:
    """Choose once in this process; return wall and processor time, the peer's, and peak memory in GB."""
    search = Search(kind, windows)
    names = auto_methods(kind)
    start, used = time.perf_counter(), time.process_time()
    run_nested_cv(search.pool(trials, epochs), names, auto=names)
    found = {"seconds": time.perf_counter() - start, "processor": time.process_time() - used}
    found["GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    start = time.perf_counter()
    for trial in range(trials):
        for epoch in range(1, epochs + 1):
            roc_auc_score(search.y_N > 0.5, search.values(trial, epoch)[:, -1])
    return found | {"peer": time.perf_counter() - start}


def measure(args: argparse.Namespace) -> report.Result:
    """Choose in a fresh process for each kind of target."""
    found = report.result(
        f"The choice of an ensemble: {args.trials} trials of {args.epochs} epochs, {args.windows} windows"
    )
    sizes = [str(size) for size in (args.trials, args.windows, args.epochs)]
    for kind in KINDS:
        words = [sys.executable, __file__, "--child", kind, *sizes]
        made = json.loads(subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
        report.add_times(found, {"choice": [made["seconds"]], "AUC of each": [made["peer"]]}, f"{kind}: ")
        report.add_ratio(found, f"{kind}: choice / AUC of each", [made["peer"]], [made["seconds"]])
        found["figures"] |= {f"{kind}: processor, s": made["processor"], f"{kind}: peak memory, GB": made["GB"]}
        for name, goal in GOALS.items():
            report.add_goal(found, f"{kind}: {goal:.0f} {name} / measured", goal / made[name], 1.0)
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"trials": 50, "windows": 100_000, "epochs": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    report.main(parser, measure, words)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(choose(sys.argv[2], *map(int, sys.argv[3:]))))  # type: ignore[arg-type]
    else:
        main()
