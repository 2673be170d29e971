"""Time functions in turns, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import torch


def take_turns(
    contestants: Mapping[str, Callable[[], object]], *, seconds: float, device: str = "cpu"
) -> dict[str, list[float]]:
    """Return the seconds of every call, after one uncounted call each: at least three rounds, for about `seconds`."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for work in contestants.values():
        work()
    start_all = time.perf_counter()
    while time.perf_counter() - start_all < seconds or len(next(iter(found.values()))) < 3:
        for name, work in contestants.items():
            _wait(device)
            start = time.perf_counter()
            work()
            _wait(device)
            found[name].append(time.perf_counter() - start)
    return found


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def where_and_when(device: str = "cpu") -> str:
    """Return the machine, the day and the commit, for RESULTS.md."""
    root = Path(__file__).parents[1]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    chip = torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()} CPU"
    return f"{chip}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {date.today()}, {commit}"


def matmul_peak(device: str, dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Return the floating-point operations per second of a square matrix product, the machine's peak."""
    size *= 1 if device == "cpu" else 8
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = take_turns({"product": lambda: a @ b}, seconds=1.0, device=device)["product"]
    return 2 * size**3 / min(times)
