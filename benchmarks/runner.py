"""Run benchmarks one after another, each in a process with a time limit, and keep what each has measured."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LAST_LINES = 12


@dataclass(frozen=True)
class Job:
    """One benchmark with its options."""

    name: str
    module: str
    options: Sequence[str] = ()
    seconds: float = 600.0
    """Time limit."""
    quick: Sequence[str] = field(default=())
    """Options for a smoke test, in place of `options`."""
    saves: bool = True
    """False for a script whose result is what it prints."""


def run(command: Sequence[str], seconds: float, log: Path) -> tuple[str, str]:
    """Run a command with its output in a file; return why it failed, or nothing, and its last lines."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        try:
            status = subprocess.run(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, timeout=max(1.0, seconds), check=False
            ).returncode
            failed = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            failed = f"stopped after {seconds:.0f} s"
    return failed, "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])


def measure(job: Job, folder: Path, seconds: float, *, quick: bool = False) -> dict[str, Any]:
    """Run a benchmark; return its result, or its name, why it failed and its last lines."""
    folder = folder.resolve()  # a job runs in the root of the repository
    saved, log = folder / f"{job.name}.json", folder / f"{job.name}.log"
    saved.unlink(missing_ok=True)
    options = [*(job.quick if quick else job.options), *(("--json", str(saved)) if job.saves else ())]
    start = time.monotonic()
    failed, last = run([sys.executable, "-m", f"benchmarks.{job.module}", *options], min(job.seconds, seconds), log)
    took = {"job": job.name, "title": job.name, "took": round(time.monotonic() - start, 1)}
    if failed:
        took |= {"failed": failed, "last lines": last}
    elif not job.saves:
        took["text"] = log.read_text(errors="replace")
    return took | (json.loads(saved.read_text()) if saved.exists() else {})
