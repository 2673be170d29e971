"""Time `raypipe status`, `raypipe trials` and the start of a driver on 1,000 trials, `raypipe report` on 16, and
`status` and `report` on 5,000.

    python benchmarks/status.py [--trials 1000] [--many 5000] [--epochs 20] [--keep FOLDER]

The large runs are written through RunStore, with the files of real trials (small placeholders for predictions and
weights). The run of the report is trained on toy windows and has an ensemble. Fresh processes take turns with one that
only imports libraries; the first round is not counted because it warms the machine's caches.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from benchmarks import report
from benchmarks.timing import median, take_turns
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

FOLDS = 5
GOALS = {"status": 2.0, "report": 20.0, "open": 2.0, "status of many": 2.0, "report of many": 10.0}
"""Seconds."""
LARGEST = 5e6
"""Bytes that a report may have."""
PEER = "import pandas, sklearn, optuna"


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


def opening_seconds(run: RunStore, rounds: int) -> list[float]:
    """Return the seconds in which a driver checks all records of a run and opens its study, by turn.

    The first call writes the study, which is not counted.
    """
    return take_turns({"": lambda: open_study(RunStore.open(run.where), SweepCallback())}, seconds=0.0, rounds=rounds)[
        ""
    ]


def train_small(folder: Path, trials: int = 16) -> RunStore:
    """Train a run of small trials, with an ensemble."""
    windows = WindowStore(write_store(folder / "store", ToyWindows(subjects=30, each=40, channels=8)))
    run = make_run(folder / "run", windows, n_folds=3, data=str(windows.path))
    for number in range(trials):
        run.add_trial(number, tiny(optim__lr=10 ** (-3.5 + number / 10), epochs=3 + number % 3, seed=number))
        run_trial(run, windows, number)
    ensemble = fit_ensemble(run, windows=windows, method="equal")
    ensemble.save()
    write_plots(run, ensemble)
    return run


def fresh(*words: str) -> Callable[[], object]:
    """Return a function that runs Python in a fresh process."""
    return lambda: subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def measure(args: argparse.Namespace) -> report.Result:
    """Time the commands, and a process that only imports."""
    found = report.result(f"Commands on runs of {args.trials} and {args.many} trials, and a report of {args.small}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        made = args.keep is not None and (folder / "small/run/ensemble/ensemble.json").is_file()
        large = RunStore.open(folder / "large") if made else write_large(folder / "large", args.trials, args.epochs)
        many = RunStore.open(folder / "many") if made else write_large(folder / "many", args.many, args.epochs)
        small = RunStore.open(folder / "small/run") if made else train_small(folder / "small", args.small)
        verbs = {"status": large, "trials": large, "report": small}
        contestants = {verb: fresh("-m", "raypipe", verb, run.where) for verb, run in verbs.items()}
        contestants |= {f"{verb} of many": fresh("-m", "raypipe", verb, many.where) for verb in ("status", "report")}
        times = take_turns(contestants | {PEER: fresh("-c", PEER)}, seconds=0.0, rounds=args.rounds)
        opened = opening_seconds(large, args.rounds)
        sizes = {run.where: Path(write_report(run)).stat().st_size for run in (small, many)}
    report.add_times(found, times | {"open: all records checked": opened})
    for verb in contestants:
        report.add_ratio(found, f"{verb} / `{PEER}`", times[PEER], times[verb])
    report.add_ratio(found, f"open / `{PEER}`", times[PEER], opened)
    for name, goal in GOALS.items():
        seconds = median(opened if name == "open" else times[name])
        report.add_goal(found, f"{name}: {goal:.0f} s / seconds", goal / seconds, 1.0)
    for name, run in {"report": small, "report of many": many}.items():
        report.add_goal(found, f"{name}: {LARGEST / 1e6:.0f} MB / size", LARGEST / sizes[run.where], 1.0)
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"trials": 1000, "many": 5000, "epochs": 20, "small": 16, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--keep", type=Path, help="folder to write the runs to and keep them in, or to read them from")
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
