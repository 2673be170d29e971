"""``python -m tests.parts PART ...``: run the parts of `make test` in order, and end with times and what was skipped.

A part is a target of the Makefile. After one that fails the rest is not run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.support.programs import MARK, SKIPS


def main(parts: list[str]) -> int:
    """Return the exit status."""
    done: dict[str, float] = {}
    failed = ""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        skips = Path(folder, "skips")
        for part in parts:
            start = time.monotonic()
            # The static checks are several commands, each of one process.
            command = ["make", "--no-print-directory", "-j2", part]
            ended = subprocess.run(command, env=os.environ | {SKIPS: str(skips)})
            done[part] = time.monotonic() - start
            if ended.returncode:
                failed = part
                break
        print(report(done, time.monotonic() - began, skips.read_text().splitlines() if skips.exists() else []))
    if failed:
        print(f"{failed} failed; not run: {', '.join(parts[len(done) :]) or 'nothing'}")
    return bool(failed)


def report(done: dict[str, float], total: float, skips: list[str]) -> str:
    """Return the table of times, and the skipped tests by reason."""
    rows = [f"{part:14} {minutes(seconds)}" for part, seconds in [*done.items(), ("total", total)]]
    counted = Counter(skips)
    lines = ["", *rows, ""]
    lines += ["skipped: nothing"] if not counted else ["skipped:"]
    for reason, count in counted.most_common():
        name, _, install = reason.removeprefix(MARK).partition("; ")
        what = f"no {name}; to have them: {install}" if reason.startswith(MARK) else reason
        lines.append(f"  {count} test(s): {what}")
    return "\n".join(lines)


def minutes(seconds: float) -> str:
    """Return a duration as minutes and seconds."""
    return f"{int(seconds) // 60:3d} min {int(seconds) % 60:02d} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
