"""Measure how the time of an epoch grows with folds, windows, channels and workers.

    python benchmarks/scale.py

Prints a table and writes `benchmarks/scale.png`. Base: 4 folds of 1,000 windows 32 x 200, SAM, batch 64, one thread in
one process. One number is changed at a time. Windows are memory-mapped from a store on disk, as in a sweep. `per
window` is the time of one training window of one fold, including its share of predicting the validation windows; a
constant means linear growth. Workers are those of a sweep of one trial; its later epochs are timed, checkpoints
included.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import itertools
import statistics

import numpy as np
import torch

from benchmarks import report
from benchmarks.folds import trainers
from benchmarks.toys import ToyWindows, make_run, write_store
from raypipe import SweepCallback, sweep
from raypipe.core.parameters import parse_config
from raypipe.data.window_store import WindowStore
from raypipe.storage.records import TrialResult
from raypipe.training.loader import WindowLoader

BASE = {"folds": 4, "windows": 1000, "channels": 32}
AXES = {"folds": [2, 4, 8], "windows": [1000, 4000, 16000, 64000], "channels": [16, 32, 64, 128, 256]}
OPTIONS: dict[str, Any] = {"model/kernels": "paper", "batch_size": 64, "sam/name": "sam", "epochs": 4, "patience": 4}
SPACE = f'''"""One point."""
START = [{{"optim/lr": 0.001}}]
def space(trial):
    trial.suggest_float("optim/lr", 1e-4, 1e-2, log=True)
    return {OPTIONS!r}
'''


def store_of(folder: Path, windows: int, channels: int, folds: int) -> Path:
    """Write a store of random windows whose folds have `windows` training windows each."""
    subjects = 4 * folds
    toy = ToyWindows(subjects=subjects, each=round(windows * folds / (folds - 1) / subjects), channels=1)
    toy.sfreq, toy.crop_samples, toy.window_samples, toy.n_channels = 250.0, 200, 200, channels
    toy.channels = [f"E{k + 1}" for k in range(channels)]
    toy.x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (len(toy), channels, 200))
    rng = np.random.default_rng(0)
    for start in range(0, len(toy), 1024):
        part = toy.x[start : start + 1024]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    write_store(folder / "store", toy)
    (folder / "x.npy").unlink()
    return folder / "store"


def epoch_seconds(folds: int, windows: int, channels: int, epochs: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        store = WindowStore(store_of(Path(name), windows, channels, folds))
        run = make_run(Path(name) / "run", store, n_folds=folds)
        every = trainers(run, WindowLoader(store), parse_config(OPTIONS | {"epochs": 100}))
        times = []
        for _ in range(epochs):
            start = time.perf_counter()
            for trainer in every:
                trainer.run_epoch()
            times.append(time.perf_counter() - start)
    return min(times)


class Clock(SweepCallback):
    """Records when epochs and the trial end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_epoch(self, number: int, epoch: int, score: float, fold_scores: Sequence[float | None]) -> None:
        self.times.append(time.perf_counter())

    def on_trial_end(self, result: TrialResult) -> None:
        self.times.append(time.perf_counter())


def sweep_seconds(workers: int, windows: int = 4000) -> float:
    """Return the median seconds from one epoch to the next in a sweep with `workers` workers per trial."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        store = store_of(Path(name), windows, BASE["channels"], BASE["folds"])
        (Path(name) / "space.py").write_text(SPACE)
        options: dict[str, Any] = {"trials": 1, "folds": 4, "workers": workers, "concurrent": 1}
        sweep(Path(name) / "space.py", store, Path(name) / "run", callback=clock, **options)
    return statistics.median(b - a for a, b in itertools.pairwise(clock.times))


def measure(args: argparse.Namespace) -> report.Result:
    """Time the epochs, and draw them."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = report.result("Growth of an epoch")
    drawn: dict[str, list[tuple[int, float]]] = {}
    for axis, values in AXES.items():
        rows = []
        for value in (value for value in values if axis != "windows" or value <= args.most):
            size = BASE | {axis: value}
            seconds = epoch_seconds(**size, epochs=1 if size["windows"] > 10000 else args.epochs)
            drawn.setdefault(axis, []).append((value, seconds))
            per_window = 1e3 * seconds / size["folds"] / size["windows"]
            rows.append((str(value), f"{seconds:.2f}", f"{per_window:.3f}"))
        report.add_table(found, f"By {axis}", (axis, "epoch, s", "per window, ms"), rows)
    drawn["workers"] = [(workers, sweep_seconds(workers)) for workers in (1, 2)]
    (_, one), (_, two) = drawn["workers"]
    report.add_table(found, "By workers", ("workers", "epoch, s"), [("1", f"{one:.2f}"), ("2", f"{two:.2f}")])
    report.add_ratio(found, "two workers / one", [one], [two])
    if args.picture:
        draw(drawn, args.picture)
    return found


def draw(found: dict[str, list[tuple[int, float]]], path: str) -> None:
    """Draw the times on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3), layout="constrained")
    for ax, (axis, rows) in zip(axes, found.items(), strict=True):
        values, seconds = zip(*rows, strict=True)
        ax.loglog(values, seconds, "o-", label="measured")
        growth = -1 if axis == "workers" else 1
        ax.loglog(values, [seconds[0] * (v / values[0]) ** growth for v in values], "k:", label="proportional")
        ax.set_xticks(values, [f"{v:,}" for v in values])
        ax.minorticks_off()
        ax.set_xlabel(axis)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("seconds an epoch, all folds")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2, help="epochs to measure; the fastest counts")
    parser.add_argument(
        "--most",
        type=int,
        default=64000,
        help="largest number of windows per fold; 64,000 of 32 x 200 take 2.2 GB on disk",
    )
    picture = str(ROOT / "benchmarks" / "scale.png")
    parser.add_argument("--picture", default=picture, help="file of the picture; empty for none")
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
