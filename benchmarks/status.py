"""Time `raypipe status`, `raypipe trials` and the start of a driver on 1,000 trials, and `raypipe report` on 16.

    python benchmarks/status.py [--trials 1000] [--epochs 20] [--keep FOLDER]

The large run is written through RunStore, with the files of real trials (small placeholders for predictions and
weights). The run of the report is trained on toy windows and has an ensemble. Every figure is the median of three fresh
processes, after one that is not counted because it warms the machine's caches.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from benchmarks.timing import where_and_when
from benchmarks.toys import ToyWindows, make_run, tiny, write_store
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.fit import fit_ensemble
from raypipe.reporting.report import write_plots, write_report
from raypipe.search.reconcile import open_study
from raypipe.storage.records import Epoch, State, TrialResult
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import TrialLog
from raypipe.trial.callback import SweepCallback
from raypipe.trial.local import run_trial
from tests.support.records import edit_record

FOLDS, REPEATS = 5, 3
GOALS = {"status": 2.0, "report": 20.0}
LARGEST = 5e6


def write_large(where: Path, trials: int, epochs: int) -> RunStore:
    """Write a run of many trials: one in ten has failed, half were pruned, the last is running."""
    run = make_run(where, ToyWindows(subjects=20), n_folds=FOLDS)
    rng = np.random.default_rng(0)
    for number in range(trials):
        run.add_trial(number, tiny(optim__lr=float(10 ** rng.uniform(-4, -2)), epochs=epochs))
        state: State = "failed" if number % 10 == 3 else "pruned" if number % 2 else "complete"
        length = epochs // 4 if state == "pruned" else epochs
        scores = 1.0 - 0.2 * rng.random() * np.log1p(np.arange(length)) / 3
        history = [
            Epoch(
                epoch=k + 1,
                passes=k + 1,
                score=float(value),
                fold_scores=(value + 0.05 * rng.normal(size=FOLDS)).tolist(),
                losses=rng.random(FOLDS).tolist(),
                seconds=4.0,
                finished=time.time(),
            )
            for k, value in enumerate(scores)
        ]
        run.write_history(number, history)
        TrialLog(run.folder, number, "actor").write("starts")
        for name in ("oof.npz", *(f"fold-{fold}.safetensors" for fold in range(FOLDS)), "log/rank-0.txt"):
            (where / f"trials/{number:04d}" / name).write_bytes(b"0")
        if number == trials - 1:
            continue
        best = int(np.argmin(scores))
        files = run.record_checksums(number)
        run.write_result(
            TrialResult(
                number=number,
                state=state,
                score=float(scores[best]),
                best_epoch=best + 1,
                epochs=length,
                seconds=4.0 * length,
                reason="a benchmark",
                failure="error" if state == "failed" else None,
                finished=time.time(),
                files=files,
            )
        )
    return run


def opening_seconds(run: RunStore) -> float:
    """Return the median seconds in which a driver checks all records of a run and opens its study.

    The first call writes the study, which is not counted.
    """
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        open_study(RunStore.open(run.where), SweepCallback())
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def train_small(folder: Path, trials: int = 16) -> RunStore:
    """Train a run of small trials, with an ensemble."""
    windows = WindowStore(write_store(folder / "store", ToyWindows(subjects=30, each=40, channels=8)))
    made = make_run(folder / "run", windows, n_folds=3)
    edit_record(made.folder, "run.json", {"data": str(windows.path)})
    run = RunStore.open(folder / "run")
    for number in range(trials):
        run.add_trial(number, tiny(optim__lr=10 ** (-3.5 + number / 10), epochs=3 + number % 3, seed=number))
        run_trial(run, windows, number)
    ensemble = fit_ensemble(run, windows=windows, method="equal")
    ensemble.save()
    write_plots(run, ensemble)
    return run


def seconds_of(*words: str) -> tuple[float, float]:
    """Return the median seconds of a fresh ``raypipe WORDS``: wall time, and processor time."""
    wall, cpu = [], []
    for _ in range(REPEATS + 1):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "raypipe", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - started)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(wall[1:]), statistics.median(cpu[1:])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, default=1000)
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--keep", type=Path, help="folder to write the runs to and keep them in, or to read them from")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        made = given.keep is not None and (folder / "small/run/ensemble/ensemble.json").is_file()
        large = RunStore.open(folder / "large") if made else write_large(folder / "large", given.trials, given.epochs)
        small = RunStore.open(folder / "small/run") if made else train_small(folder / "small")
        print(where_and_when())
        rows = [("status", large, given.trials), ("trials", large, given.trials), ("report", small, 16)]
        for verb, run, count in rows:
            wall, cpu = seconds_of(verb, run.where)
            goal = f"  (goal {GOALS[verb]:.0f} s)" if verb in GOALS else ""
            print(f"{verb:<7} {count:>5} trials  {wall:6.2f} s wall time, {cpu:5.2f} s processor time{goal}")
        print(f"open    {given.trials:>5} trials  {opening_seconds(large):6.2f} s, all records checked (goal 2 s)")
        size = Path(write_report(small)).stat().st_size
        print(f"size of the report: {size / 1e6:.2f} MB (goal {LARGEST / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
