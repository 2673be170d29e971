"""Time functions in turns, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import torch

COMMIT = "RAYPIPE_COMMIT"
"""Environment variable: the commit, for a copy of the files without its history."""


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    rounds: int = 3,
    device: str = "cpu",
    calls: int = 1,
    uncounted: int = 1,
) -> dict[str, list[float]]:
    """Return the seconds per call of every turn, after uncounted ones.

    Parameters
    ----------
    contestants
        Functions to time.
    seconds
        About how long to measure.
    rounds
        Rounds to take at least.
    device
        A GPU is waited for before and after a turn, not between its calls.
    calls
        Calls per turn.
    uncounted
        Turns of each contestant that come first.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for work in contestants.values():
        timed(work, device, uncounted * calls)
    start_all = time.perf_counter()
    while time.perf_counter() - start_all < seconds or len(next(iter(found.values()))) < rounds:
        for name, work in contestants.items():
            found[name].append(timed(work, device, calls))
    return found


def timed(work: Callable[[], object], device: str = "cpu", calls: int = 1) -> float:
    """Return the seconds per call."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def where(device: str = "cpu") -> dict[str, str]:
    """Return the machine, the software, the day and the commit."""
    found = {
        "device": torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()} CPU",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": str(date.today()),
        "commit": os.environ.get(COMMIT) or _output("git", "describe", "--always", "--dirty") or "unknown",
    }
    if device != "cpu":
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found |= {"driver": driver.split("\n")[0] or "unknown", "CUDA": str(torch.version.cuda)}
    return found


def _output(*words: str) -> str:
    """Return what a program prints; nothing if it is missing or fails."""
    try:
        ended = subprocess.run(
            words, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""


def where_and_when(device: str = "cpu") -> str:
    """Return the same as one line, for RESULTS.md."""
    found = where(device)
    return (
        f"{found['device']}, {found['threads']} thread(s), torch {found['torch']}, {found['date']}, {found['commit']}"
    )


def matmul_peak(device: str, dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Return the floating-point operations per second of a square matrix product, the machine's peak."""
    size *= 1 if device == "cpu" else 8
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = take_turns({"product": lambda: a @ b}, seconds=1.0, device=device)["product"]
    return 2 * size**3 / min(times)


def copy_bandwidth(device: str, mib: int = 64) -> float:
    """Return the bytes per second that a copy reads and writes, of a tensor too large for the caches."""
    source = torch.randn(mib * 2**18 * (1 if device == "cpu" else 16), device=device)
    target = torch.empty_like(source)
    times = take_turns({"copy": lambda: target.copy_(source)}, seconds=0.5, device=device)["copy"]
    return 2 * source.numel() * 4 / min(times)


def launch_seconds(device: str, launches: int = 1000) -> float:
    """Return the seconds of an operator on one number; on a GPU as part of a CUDA graph, where it is one kernel."""
    number = torch.zeros(1, device=device)

    def launch() -> None:
        for _ in range(launches):
            number.add_(1.0)

    work: Callable[[], object] = launch
    if device != "cpu":
        launch()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        work = graph.replay
    return min(take_turns({"launches": work}, seconds=0.1, device=device)["launches"]) / launches
