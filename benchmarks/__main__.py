"""Run the benchmarks by one command, and compare their ratios with those of the last time: `make bench`.

    python -m benchmarks                     # all but the long ones; half an hour on two cores
    python -m benchmarks --quick             # small sizes, to see whether they run
    python -m benchmarks --only step folds
    python -m benchmarks --list

Each runs in a process of its own, so that none starts with the caches or threads of another. All results are in one
JSON file. Compared are ratios to a peer that took turns in the same run, not seconds, which depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report
from benchmarks.runner import ROOT, Job, measure
from benchmarks.timing import where

RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "build" / "bench-quick.json"
SMALL = ("--batch", "8", "--channels", "8")
SHORT = ("--folds", "2", "--windows", "32", "--channels", "8", "--epochs", "2")
JOBS = (
    Job("step", "step", ("--seconds", "60"), 1200, (*SMALL, "--stack", "2", "--seconds", "0.2", "--quick")),
    Job("folds", "folds", ("--windows", "640"), 1200, ("--batch", "8", *SHORT)),
    Job("pretraining", "pretraining", (), 600, (*SMALL, "--seconds", "0.2", "--steps", "2")),
    Job("ensemble", "ensemble", (), 600, ("--members", "3", "--batch", "8", "--rounds", "3")),
    Job("checkpoint", "checkpoint", ("--windows", "640", "--rounds", "5"), 600, (*SHORT, "--rounds", "1")),
    Job("status", "status", (), 600, ("--trials", "10", "--epochs", "4", "--small", "6", "--rounds", "1")),
    Job("handover", "handover", (), 600, ("--trials", "3")),
    Job("ranking", "ranking", (), 600, ("--quick",)),
    Job("chance", "chance", (), 1200, ("--quick", "--permutations", "19")),
    Job("training_biases", "training_biases", (), 1200, ("--quick",)),
)  # fmt: skip
LONG = {
    "sweep": "python benchmarks/sweep.py: trials an hour against Optuna and Ray Tune, well over an hour",
    "scale": "python benchmarks/scale.py: growth of an epoch with folds, windows, channels and workers",
    "many_trials": "python benchmarks/many_trials.py: a thousand simulated trials",
    "hosts": "python benchmarks/hosts.py: two hosts of namespaces, as root",
    "finetune": "python benchmarks/finetune.py STORE: the gain by pretraining, on real recordings",
    "null_searches": "python -m benchmarks.null_searches: searches without an effect, hours",
    "interval_coverage": "python -m benchmarks.interval_coverage: claims about new people",
    "chaos": "make chaos: runs with kills, bit for bit",
    "gpu": "make gpu: tests and benchmarks on a CUDA device",
}
"""Benchmarks with a command of their own."""


def last_results(folder: Path) -> Path | None:
    """Return the newest results of all benchmarks in a folder."""
    return max(folder.glob("????-??-??*.json"), default=None, key=lambda path: path.stem)


def new_file(folder: Path) -> Path:
    """Return a name for today's results that is not taken, and sorts after those that are."""
    today = str(date.today())
    names = [today, *(f"{today}-{number}" for number in range(2, 100))]
    return next(path for name in names if not (path := folder / f"{name}.json").exists())


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return a line for each ratio that got worse by more than its spread."""
    before = {each["job"]: each for each in old["results"] if "ratios" in each}
    return [
        line
        for each in new["results"]
        if "ratios" in each and each["job"] in before
        for line in report.worse(before[each["job"]], each)
    ]


def main() -> int:
    """Return the exit status: 1 if a benchmark failed; a ratio that got worse is only printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[job.name for job in JOBS], help="benchmarks to run")
    parser.add_argument("--out", type=Path, help="file of the results; else benchmarks/results/DATE.json")
    parser.add_argument("--against", type=Path, help="earlier results; else the newest in benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is compared without --against")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and end")
    args = parser.parse_args()
    if args.list:
        print("\n".join([*(job.name for job in JOBS), "", "Not run here:", *LONG.values()]))
        return 0
    out = args.out or (QUICK_RESULTS if args.quick else new_file(RESULTS))
    old = args.against or (None if args.quick else last_results(RESULTS))
    earlier = json.loads(old.read_text()) if old else None
    found: dict[str, Any] = {"where": where(), "quick": args.quick, "results": []}
    with tempfile.TemporaryDirectory() as folder:
        for job in JOBS:
            if args.only and job.name not in args.only:
                continue
            found["results"].append(each := measure(job, Path(folder), job.seconds, quick=args.quick))
            report.save(out, found)
            print(f"{job.name}: {each.get('failed') or 'measured'} in {each['took']:.0f} s", flush=True)
            print(report.text(each, head="## ") if "where" in each else each["last lines"], flush=True)
    print(f"results: {out}")
    if earlier:
        lines = compare(earlier, found)
        print(f"\nWorse than in {old}:" if lines else f"\nNo ratio is worse than in {old} by more than its spread.")
        print("\n".join(lines))
    return int(any(map(report.has_failed, found["results"])))


if __name__ == "__main__":
    sys.exit(main())
