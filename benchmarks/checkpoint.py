"""Measure the time that checkpoints of every fold add to an epoch.

    python benchmarks/checkpoint.py                  # 4 folds of 2,000 training windows 129 x 200, SAM, one thread

The same trial is trained in one process, in turns with and without checkpoints. A checkpoint is a copy of the whole
state of a fold, packed with its digest and flushed to the disk by another thread while the next epoch is trained.
Without checkpoints, nothing is copied, packed or written. The processor time is that of both threads.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import itertools

import torch

from benchmarks import report
from benchmarks.folds import windows_of
from benchmarks.toys import make_run
from raypipe.core.parameters import parse_config
from raypipe.training.loader import WindowLoader
from raypipe.training.result import Reply
from raypipe.trial import fold_runner
from raypipe.trial.fold_runner import FoldRunner


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Let runners make no checkpoints."""
    with (
        patch.object(fold_runner, "checkpoint_of", lambda trainer, outcome: {}),
        patch.object(FoldRunner, "_write", lambda runner, fold, epoch, state: None),
    ):
        yield


def epochs_of(runner: FoldRunner, count: int) -> tuple[list[float], list[float]]:
    """Return the seconds, and those of the processor, from each report to the next.

    The first report, which includes the start, is left out.
    """
    seen: list[float] = []
    used: list[float] = []

    def report(epoch: int, outcomes: object) -> Reply:
        seen.append(time.perf_counter())
        used.append(time.process_time())
        return Reply(len(seen) <= count, epoch)

    runner.train(0, report)
    seconds, processor = ([b - a for a, b in itertools.pairwise(each)] for each in (seen, used))
    return seconds, processor


def measure(args: argparse.Namespace) -> report.Result:
    """Time epochs with checkpoints and without."""
    torch.set_num_threads(1)
    toy = windows_of(args.windows * args.folds // (args.folds - 1), args.channels, args.samples, 4 * args.folds)
    config = parse_config({"model/kernels": "paper", "sam/name": "sam", "epochs": 50, "patience": 50})
    found = report.result(f"Checkpoints of {args.folds} folds of {args.windows} training windows")
    times: dict[str, list[float]] = {"with checkpoints": [], "without": []}
    used: dict[str, list[float]] = {way: [] for way in times}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(args.rounds):
            for way in times:
                run = make_run(Path(name) / f"{way}-{turn}", toy, n_folds=args.folds)
                run.add_trial(0, config)
                runner = FoldRunner(run, WindowLoader(toy), 0, range(args.folds))  # type: ignore[arg-type]
                with without_checkpoints() if way == "without" else nullcontext():
                    seconds, processor = epochs_of(runner, args.epochs)
                times[way] += seconds
                used[way] += processor
                if way != "without":
                    size = sum(f.stat().st_size for f in Path(run.where).rglob("*.ckpt")) / 2**20
    for mark, each in {"an epoch": times, "an epoch's processor time": used}.items():
        report.add_times(found, each, f"{mark} ")
        ratio = report.add_ratio(found, f"{mark} with checkpoints / without", each["without"], each["with checkpoints"])
        found["figures"][f"cost of checkpoints (% of {mark})"] = 100 * (1 / ratio - 1)
    found["figures"]["MiB on the disk at the end"] = size
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"folds": 4, "windows": 2000, "channels": 129, "samples": 200, "epochs": 3, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
