"""Compare the band-pass of `prepare` with MNE's on pieces of recordings, on one thread; both give the same samples.

python benchmarks/filters.py [--channels 129] [--seconds 3]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from mne.filter import filter_data
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.timing import take_turns
from raypipe.data.fir_filters import apply_filter, design_band

BAND = (0.5, 40.0)
PIECES = {"a minute at 100 Hz": (60, 100.0), "a minute at 500 Hz": (60, 500.0), "ten minutes at 500 Hz": (600, 500.0)}
SAMPLE_BYTES = 3
"""Bytes of a sample in a BDF file."""
GOAL = 40.0
"""MB of such samples that a second of a processor filters."""


def own(x_CT: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    return apply_filter(x_CT, design_band(rate, *BAND))


def mne(x_CT: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    return np.asarray(filter_data(x_CT, rate, *BAND, verbose="ERROR"))


def measure(args: argparse.Namespace) -> report.Result:
    """Check that both agree to 1e-6 of the largest sample, then time them."""
    found = report.result(f"A band-pass of {BAND[0]} to {BAND[1]} Hz, {args.channels} channels")
    rng = np.random.default_rng(0)
    for name, (length, rate) in PIECES.items():
        x_CT = 50 * rng.normal(size=(args.channels, int(length * rate)))
        wanted = mne(x_CT, rate)
        np.testing.assert_allclose(own(x_CT, rate), wanted, atol=1e-6 * np.abs(wanted).max())
        contestants: dict[str, Callable[[], object]] = {
            "raypipe": partial(own, x_CT, rate),
            "MNE": partial(mne, x_CT, rate),
        }
        times = take_turns(contestants, seconds=args.seconds, rounds=args.rounds)
        report.add_times(found, times, f"{name}: ")
        report.add_ratio(found, f"{name}: raypipe / MNE", times["MNE"], times["raypipe"])
        used = time.process_time()
        own(x_CT, rate)
        megabytes = x_CT.size * SAMPLE_BYTES / 1e6 / (time.process_time() - used)
        found["figures"][f"{name}: MB a second of a processor"] = megabytes
        report.add_goal(found, f"{name}: MB a second of a processor / {GOAL:.0f}", megabytes / GOAL, 1.0)
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=129)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each kind of piece")
    parser.add_argument("--rounds", type=int, default=3)
    report.main(parser, measure, words)


if __name__ == "__main__":
    main()
