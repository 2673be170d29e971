"""Measure how late predictions of a live stream come, over LabStreamingLayer on this machine.

    python benchmarks/stream.py [--seconds 120] [--members 4]

Another process sends noise in real time: 129 channels at 500 Hz, 20 ms at a time. Delays are those of the predictions
beyond their windows and the reach of the filters: from the arrival of the last sample in the program, and from its
stamp, which the sender gave it. Other programs on the machine delay both processes, so its load is printed, and the
processor's time from the arrival on, which does not depend on them: the delay on a core of one's own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from benchmarks import report
from benchmarks.ensemble import module
from raypipe.data.manifest import Plan
from raypipe.data.preprocessing import Preprocessing
from raypipe.packaging.bundle import LoadedEnsemble
from raypipe.packaging.stream import stream
from raypipe.recordings.live import LAG, Chunk

RATE, N_CHANNELS, CHUNK = 500.0, 129, 10
RECIPES: dict[str, dict[str, Any]] = {
    "no filter, resampled to 100 Hz": {},
    "band 1 to 40 Hz, average reference, resampled": {"band": (1.0, 40.0), "reference": "average"},
    "band 0.5 to 40 Hz and notch, resampled": {"band": (0.5, 40.0), "notch": (50.0,)},
}
GOAL = 0.05
"""Seconds that the 99th percentile is to be below."""
LOOPBACK = """
[multicast]
ResolveScope = machine
AddressesOverride = {127.0.0.1}
[lab]
KnownPeers = {127.0.0.1}
[log]
level = -3
"""


def names() -> tuple[str, ...]:
    return tuple(f"E{number}" for number in range(1, N_CHANNELS + 1))


def play(name: str, seconds: float) -> None:
    """Send noise in real time, once someone listens."""
    import pylsl

    info = pylsl.StreamInfo(name, "EEG", N_CHANNELS, RATE, "float32", name)
    channels = info.desc().append_child("channels")
    for label in names():
        channel = channels.append_child("channel")
        channel.append_child_value("label", label)
        channel.append_child_value("unit", "microvolts")
    outlet = pylsl.StreamOutlet(info)
    outlet.wait_for_consumers(60.0)
    x_TC = (10 * np.random.default_rng(0).normal(size=(CHUNK, N_CHANNELS))).astype(np.float32)
    start = pylsl.local_clock()
    for turn in range(1, int(seconds * RATE / CHUNK)):
        time.sleep(max(0.0, start + turn * CHUNK / RATE - pylsl.local_clock()))
        outlet.push_chunk(x_TC, start + turn * CHUNK / RATE)  # stamp of the last sample
    time.sleep(1.0)


def ensemble(members: int, steps: dict[str, Any]) -> LoadedEnsemble:
    """Return an ensemble of Conformers with random weights."""
    plan = Plan(
        target="participants:age", channels=names(), sources=names(), sfreq=100.0, window=2.0, stride=0.25, tmin=0.0,
        window_samples=200, crop_samples=200, target_is_offset=False, dtype="float32", crops="own",
        preprocessing=Preprocessing(**steps),
    )  # fmt: skip
    info = SimpleNamespace(
        prepare=plan,
        channels=list(names()),
        sfreq=100.0,
        classes=[],
        n_times=200,
        n_outputs=1,
        scale=0.0,
        decision_weights=None,
        people=None,
        recipes={},
        code_members=list,
    )
    return LoadedEnsemble(info, module(members))  # type: ignore[arg-type]


class CpuTime:
    """The processor's time since the last samples were pulled."""

    def __init__(self, pull: Callable[[], Chunk | None]) -> None:
        self._pull, self._start = pull, 0.0

    def pull(self) -> Chunk | None:
        chunk = self._pull()
        self._start = time.process_time()
        return chunk

    def seconds(self) -> float:
        return time.process_time() - self._start


def delays(name: str, args: argparse.Namespace, steps: dict[str, Any]) -> tuple[dict[str, list[float]], int]:
    """Return the delays of predictions by what they are counted from, and the number of gaps."""
    import pylsl

    player = subprocess.Popen([sys.executable, __file__, "--play", name, "--seconds", str(args.seconds)], cwd=ROOT)
    try:
        live = stream(ensemble(args.members, steps), name, wait=20.0, say=lambda _: None)
        inlet: Any = live.source
        inlet._wait = 2.0
        used = CpuTime(inlet.pull)
        inlet.pull = used.pull
        found: dict[str, list[float]] = {"processor": [], "arrival": [], "stamp": []}
        begun = None
        for window in live:
            now, processor = pylsl.local_clock(), used.seconds()
            begun = begun or window.start
            if window.delay and window.start > begun + LAG:  # later than those that waited at the start
                found["processor"].append(processor)
                found["arrival"].append(window.delay)
                found["stamp"].append(now - (window.start + 2.0 + live.behind - 1.0 / RATE))
    finally:
        player.wait()
    return found, live.gaps


def measure(args: argparse.Namespace) -> report.Result:
    """Measure each recipe."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = report.result(
        f"Delays of live predictions, {N_CHANNELS} channels at {RATE:g} Hz, {args.members} Conformers"
    )
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "lsl_api.cfg"
        config.write_text(LOOPBACK)
        os.environ["LSLAPICFG"] = str(config)
        for recipe, steps in RECIPES.items():
            late, gaps = delays(f"benchmark {os.getpid()} {len(rows)}", args, steps)
            report.add_times(found, {f"{recipe}, {name}": seconds for name, seconds in late.items()})
            worst = {name: float(np.percentile(seconds, 99)) for name, seconds in late.items()}
            shown = [f"{1e3 * seconds:.1f}" for seconds in worst.values()]
            load = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
            rows.append([recipe, str(len(late["arrival"])), *shown, str(gaps), load])
            report.add_goal(found, f"{recipe}: {GOAL:g} s / 99th percentile from arrival", GOAL / worst["arrival"], 1.0)
    head = ["99 % (ms)", "predictions", "processor", "from arrival", "from stamp", "gaps", "load"]
    report.add_table(found, "Delays", head, rows)
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of each stream")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--play", metavar="NAME", help=argparse.SUPPRESS)
    given = sys.argv[1:] if words is None else list(words)
    if "--play" in given:
        args = parser.parse_args(given)
        play(args.play, args.seconds)
    else:
        report.main(parser, measure, given)


if __name__ == "__main__":
    main()
