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
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report
from benchmarks.runner import ROOT, Job, measure
from benchmarks.timing import where

RESULTS = ROOT / "benchmarks" / "results"
SOME_RESULTS = "build/bench.json"
SMALL = ("--batch", "8", "--channels", "8")
SHORT = ("--folds", "2", "--windows", "32", "--channels", "8", "--epochs", "2")
JOBS = (
    Job("step", "step", ("--seconds", "60"), 1200, (*SMALL, "--stack", "2", "--seconds", "0.2", "--quick")),
    Job("folds", "folds", ("--windows", "640"), 1200, ("--batch", "8", *SHORT)),
    Job("pretraining", "pretraining", (), 600, (*SMALL, "--seconds", "0.2", "--steps", "2")),
    Job("ensemble", "ensemble", (), 600, ("--members", "3", "--batch", "8", "--rounds", "3")),
    Job("checkpoint", "checkpoint", ("--windows", "640", "--rounds", "5"), 600, (*SHORT, "--rounds", "1")),
    Job("status", "status", (), 1200,
        ("--trials", "10", "--many", "20", "--epochs", "4", "--small", "6", "--rounds", "1")),
    Job("choice", "choice", (), 1200, ("--trials", "12", "--windows", "2000", "--epochs", "2")),
    Job("draws", "draws", (), 600, ("--trials", "20", "60", "--rounds", "2")),
    Job("stream", "stream", (), 900, ("--seconds", "20", "--members", "1")),
    Job("filters", "filters", (), 600, ("--channels", "8", "--seconds", "0", "--rounds", "1")),
    Job("handover", "handover", (), 600, ("--trials", "3")),
    Job("ranking", "ranking", (), 600, ("--quick",)),
    Job("chance", "chance", (), 1200, ("--quick", "--permutations", "19")),
    Job("training_biases", "training_biases", (), 1200, ("--quick",)),
)  # fmt: skip
LONG = (
    Job("sweep", "sweep", (), 4 * 3600, ("--windows", "64", "--trials", "2", "--only", "raypipe")),
    Job("scale", "scale", (), 2 * 3600, ("--most", "1000", "--epochs", "1", "--picture", "")),
    Job("many_trials", "many_trials", (), 4 * 3600,
        ("--trials", "4", "--concurrent", "2", "--seconds", "0.5", "--epochs", "2", "--nodes", "1"), saves=False),
    Job("hosts", "hosts", (), 2 * 3600, ("--trials", "2", "--epochs", "2", "--windows", "64"), saves=False),
    Job("null_searches", "null_searches", (), 12 * 3600, ("--quick",), saves=False),
    Job("interval_coverage", "interval_coverage", (), 4 * 3600, ("--quick",), saves=False),
    Job("decisions", "decisions", (), 3600, ("--quick",), saves=False),
    Job("baseline_claims", "baseline_claims", (), 2 * 3600, ("--quick",), saves=False),
)  # fmt: skip
"""Run with `--only`; `hosts` as root."""
ELSEWHERE = {
    "neuralbench": "python benchmarks/neuralbench.py BIDS: NeuralBench's split of eegmat, half an hour",
    "finetune": "python benchmarks/finetune.py STORE: the gain by pretraining, on real recordings",
    "chaos": "make chaos: runs with kills, compared bit for bit",
    "gpu": "make gpu: tests and benchmarks on a CUDA device",
}
"""Benchmarks with a command of their own."""


Ratio = tuple[str, str]
"""Name of a benchmark, and of a ratio that it measures."""
Earlier = dict[Ratio, tuple[Path, dict[str, float]]]
"""The newest value of each ratio, and the file that it is in."""


def new_file(folder: Path) -> Path:
    """Return a name for today's results that is not taken."""
    today = str(date.today())
    names = (today, *(f"{today}-{number}" for number in range(2, 1000)))
    return next(path for name in names if not (path := folder / f"{name}.json").exists())


def earlier_results(files: Iterable[Path]) -> Earlier:
    """Return the ratios in files named by day and number, of each the last one."""
    found: Earlier = {}
    for path in sorted(files, key=lambda path: (path.stem[:10], int(path.stem[11:] or 1))):
        found |= results_of(path)
    return found


def results_of(path: Path) -> Earlier:
    """Return the ratios in a file."""
    return {ratio: (path, value) for ratio, value in ratios_in(json.loads(path.read_text())).items()}


def ratios_in(results: dict[str, Any]) -> dict[Ratio, dict[str, float]]:
    """Return the ratios of a run of benchmarks that can be compared."""
    return {
        (each["job"], name): ratio
        for each in results["results"]
        for name, ratio in each.get("ratios", {}).items()
        if report.has_spread(ratio)
    }


def compare(earlier: Earlier, new: dict[str, Any]) -> list[str]:
    """Return lines about ratios that got worse by more than their spread, those that are gone, and what has none."""
    now = ratios_in(new)
    jobs = [each["job"] for each in new["results"]]
    both = [ratio for ratio in now if ratio in earlier]
    said = {ratio: report.worse(earlier[ratio][1], now[ratio]) for ratio in both}
    lines = [f"{job}: {name}: {text} in {earlier[job, name][0].name}" for (job, name), text in said.items() if text]
    if lines:
        lines.insert(0, f"\nWorse than before, of {len(both)} ratios:")
    elif both:
        lines = [f"\nNone of {len(both)} ratios is worse than before by more than its spread."]
    gone = [f"{job}: {name}" for job, name in earlier if job in jobs and (job, name) not in now]
    lines += [f"Not measured this time: {'; '.join(gone)}."] if gone else []
    without = [job for job in jobs if job not in {job for job, _ in both}]
    return [*lines, *([f"Compared with nothing: {', '.join(without)}."] if without else [])]


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[job.name for job in JOBS + LONG], help="benchmarks to run")
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is compared without --against")
    parser.add_argument("--out", type=Path, help=f"file of the results; else {SOME_RESULTS} with --only or --quick, "
                        "and a new file in benchmarks/results without")  # fmt: skip
    parser.add_argument("--against", type=Path, help="earlier results; else those in benchmarks/results, of each "
                        "ratio the newest")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the benchmarks and end")
    args = parser.parse_args()
    if args.against is not None and not args.against.is_file():
        parser.error(f"--against {args.against}: there is no such file")
    return args


def show_list() -> int:
    """List the benchmarks."""
    print("\n".join(job.name for job in JOBS))
    print("\nLong, with --only:", *(job.name for job in LONG))
    print("\nNot run here:", *ELSEWHERE.values(), sep="\n")
    return 0


def run_jobs(jobs: Sequence[Job], out: Path, *, quick: bool) -> dict[str, Any]:
    """Run benchmarks; print each result and save all so far."""
    found: dict[str, Any] = {"where": where(), "quick": quick, "results": []}
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs:
            each = measure(job, Path(folder), job.seconds, quick=quick)
            found["results"].append(each)
            report.save(out, found)
            print(f"{job.name}: {each.get('failed') or 'measured'} in {each['took']:.0f} s", flush=True)
            shown = report.text(each, head="## ") if "where" in each else each.get("last lines") or each["text"]
            print(shown, flush=True)
    print(f"results: {out}")
    return found


def main() -> int:
    """Return the exit status: 1 if a benchmark failed; a ratio that got worse is only printed."""
    args = options()
    if args.list:
        return show_list()
    earlier: Earlier = {}
    if args.against:
        earlier = results_of(args.against)
    elif not args.quick:
        earlier = earlier_results(RESULTS.glob("????-??-??*.json"))
    jobs = [job for job in JOBS + LONG if job.name in args.only] if args.only else JOBS
    out = args.out or (ROOT / SOME_RESULTS if args.quick or args.only else new_file(RESULTS))
    found = run_jobs(jobs, out, quick=args.quick)
    if args.against or not args.quick:
        print("\n".join(compare(earlier, found)))
    return int(any(map(report.has_failed, found["results"])))


if __name__ == "__main__":
    sys.exit(main())
