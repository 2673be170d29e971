"""Test and measure raypipe on a CUDA device, within ten minutes: `make gpu OUT=FOLDER`.

    python3 -m benchmarks.gpu --out FOLDER

It needs torch, numpy, pandas, scipy, scikit-learn, pydantic and pytest, but not Ray. It runs the tests in tests/gpu,
and the benchmarks of steps, folds and pretraining on the device. FOLDER/gpu.json and FOLDER/gpu.md are written again
after each of them, so that a run that is cut off leaves what it has measured. Without a CUDA device, nothing is run.
braindecode is compared with if it is installed. The environment variable RAYPIPE_COMMIT names the commit of a copy
without history.
"""

from __future__ import annotations

import argparse
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

try:
    import torch

    from benchmarks import report
    from benchmarks.runner import Job, measure, run
    from benchmarks.timing import where
except ModuleNotFoundError as error:
    print(f"{sys.executable} has no {error.name}; name a Python that has: make gpu PYTHON=...", file=sys.stderr)
    sys.exit(2)

LIMIT = 540.0
"""Seconds that all may take."""
TEST_SECONDS = 200.0
DEVICE = ("--device", "cuda")
BOTH_BATCHES = ("--batch", "64", "512")
SMALL = ("--batch", "8", "--channels", "19")
JOBS = (
    Job("folds", "folds", (*DEVICE, "--batch", "64", "--folds", "5"), 150,
        (*DEVICE, *SMALL, "--folds", "2", "--windows", "64")),
    Job("step", "step", (*DEVICE, *BOTH_BATCHES, "--stack", "1", "2", "5", "10", "--seconds", "15"), 180,
        (*DEVICE, *SMALL, "--stack", "1", "2", "--seconds", "1", "--quick")),
    Job("folds-512", "folds", (*DEVICE, "--batch", "512", "--folds", "5", "--windows", "5120"), 150,
        (*DEVICE, *SMALL, "--folds", "2", "--windows", "64")),
    Job("pretraining", "pretraining", (*DEVICE, *BOTH_BATCHES, "--seconds", "10"), 90,
        (*DEVICE, "--batch", "8", "--seconds", "1")),
)  # fmt: skip


def run_tests(folder: Path, seconds: float) -> dict[str, Any]:
    """Run tests/gpu; return how many passed, failed and were skipped, with the last lines of the failures."""
    saved = folder / "tests.xml"
    saved.unlink(missing_ok=True)
    options = ["tests/gpu", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={saved.resolve()}"]
    failed, last = run([sys.executable, "-m", "pytest", *options], seconds, folder / "tests.log")
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": {}, "failures": {}}
    if not saved.exists():
        return found | {"stopped": failed or "no result", "last lines": last}
    skipped: Counter[str] = Counter()
    for case in ElementTree.parse(saved).iter("testcase"):
        problem = next((each for name in ("failure", "error") for each in case.iter(name)), None)
        skip = case.find("skipped")
        name = f"{case.get('classname')}.{case.get('name')}"
        if problem is not None:
            found["failed"] += 1
            found["failures"][name] = (problem.text or problem.get("message") or "").splitlines()[-8:]
        elif skip is not None:
            skipped[skip.get("message") or ""] += 1
        else:
            found["passed"] += 1
    return found | {"skipped": dict(skipped)}


def markdown(found: dict[str, Any]) -> str:
    """Return all results as one document."""
    lines = ["# raypipe on a GPU", "", ", ".join(f"{name} {value}" for name, value in found["where"].items()), ""]
    lines += tests_text(found["tests"]) if "tests" in found else []
    goals = [goal for each in found["results"] for goal in each.get("goals", ())]
    if goals:
        lines += report.table(report.GOAL_COLUMNS, [report.goal_row(goal) for goal in goals])
    for each in found["results"]:
        if "failed" in each:
            lines += [f"## {each['job']}: {each['failed']}", "", *fenced(each["last lines"].splitlines())]
        if "where" in each:
            lines += [report.text(each | {"goals": []}, head="## ")]
    return "\n".join(lines)


def tests_text(tests: dict[str, Any]) -> list[str]:
    """Return lines on the tests: how many, and the last lines of those that failed."""
    skipped = "; ".join(f"{count} ({reason})" for reason, count in tests["skipped"].items()) or "0"
    lines = [f"Tests: {tests['passed']} passed, {tests['failed']} failed, skipped {skipped}", ""]
    if "stopped" in tests:
        lines += [f"The tests did not end: {tests['stopped']}", "", *fenced(tests["last lines"].splitlines())]
    for name, text in tests["failures"].items():
        lines += [f"- {name}", "", *fenced(text)]
    return lines


def fenced(lines: Sequence[str]) -> list[str]:
    """Return lines of a program as a block of Markdown."""
    return ["```", *lines, "```", ""]


def main() -> int:
    """Return the exit status: 1 if a test or a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="time limit of all")
    parser.add_argument("--only", nargs="+", choices=["tests", *(job.name for job in JOBS)], help="parts to run")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see whether all of it runs")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return 0
    end = time.monotonic() + args.seconds
    found: dict[str, Any] = {"where": where("cuda"), "results": []}

    def keep() -> None:
        report.save(args.out / "gpu.json", found)
        (args.out / "gpu.md").write_text(markdown(found))

    wanted = args.only or ["tests", *(job.name for job in JOBS)]
    if "tests" in wanted:
        found["tests"] = run_tests(args.out, min(TEST_SECONDS, end - time.monotonic()))
        keep()
    for job in (job for job in JOBS if job.name in wanted):
        if (left := end - time.monotonic()) < 5:
            found["results"].append({"job": job.name, "title": job.name, "failed": "no time left", "last lines": ""})
        else:
            found["results"].append(measure(job, args.out, left, quick=args.quick))
        keep()
    print(markdown(found))
    tests = found.get("tests", {})
    return int(bool(tests.get("failed")) or "stopped" in tests or any(map(report.has_failed, found["results"])))


if __name__ == "__main__":
    sys.exit(main())
