"""Measure a bundle or an exported graph on this machine: latency, throughput and memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from raypipe.core.errors import UserError
from raypipe.core.record import FrozenModel
from raypipe.packaging import graph_runner
from raypipe.packaging.bundle import load_ensemble
from raypipe.packaging.graph_info import kind_of, read_graph_info
from raypipe.packaging.scorer import reference_windows
from raypipe.packaging.scorer_process import ScorerProcessError, run_script
from raypipe.packaging.submission import INPUT_SCALE
from raypipe.storage.local_path import local_path
from raypipe.storage.scratch import scratch_folder

BATCH = 256
N_WINDOWS = 16


class _Measured(FrozenModel):
    what: str
    load_s: float
    load_mb: float
    peak_mb: float
    one_s: list[float]
    windows_per_s: float
    batches: int


_MEASURED = TypeAdapter(_Measured)


@dataclass(frozen=True)
class Speed:
    """How fast a bundle or a graph is on this machine."""

    path: Path
    what: str
    """What has run it, in how many threads."""
    windows: str
    """Shape and rate of a window."""
    n_networks: int
    latency_ms: tuple[float, float]
    """Median, and 99th percentile, of the time that one window takes."""
    runs: int
    """Runs on one window."""
    windows_per_s: float
    """In batches of `BATCH`."""
    batches: int
    """Batches that were timed."""
    load_s: float
    """Until the first prediction."""
    load_mb: float
    """Peak memory until then."""
    peak_mb: float
    """Peak memory of the process."""

    def lines(self) -> list[str]:
        """Return the lines for a terminal."""
        median, late = self.latency_ms
        rows = {
            "one window": f"{median:.2f} ms, 99th percentile {late:.2f} ms ({self.runs} runs)",
            f"batches of {BATCH}": f"{self.windows_per_s:,.0f} windows/s ({self.batches} batches)",
            "memory": f"{self.peak_mb:,.0f} MB at most, {self.load_mb:,.0f} MB with one window",
            "start": f"{self.load_s:.1f} s to the first prediction",
        }
        width = max(map(len, rows))
        head = f"{self.path}: {self.n_networks} networks, windows of {self.windows}, {self.what}"
        return [head, *(f"  {name:<{width}}  {text}" for name, text in rows.items())]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def bench(path: str | Path, *, threads: int | None = None, seconds: float = 5.0, trust_code: bool = False) -> Speed:
    """Measure a bundle or a graph in a process of its own, on random windows.

    A bundle takes windows that are prepared, too: reading recordings is not measured. A ``.pt2`` file may run code when
    it is read: measure only what you have made.

    Parameters
    ----------
    path
        Folder of a bundle, or a file that ends in ``.onnx`` or ``.pt2``.
    threads
        Of torch or onnxruntime; None for their defaults.
    seconds
        Time for each of the two measurements; three runs at least are timed.
    trust_code
        Run code in a bundle; see `load_ensemble`.

    Raises
    ------
    UserError
        It is neither, or it cannot be run; or `seconds` is negative.
    """
    path = local_path(path, "a bundle or graph is measured", "copy it here")
    if not seconds >= 0.0:
        raise UserError(f"seconds {seconds:g}: must be 0 or more")
    if not path.exists():
        raise UserError(f"{path}: no such bundle or graph; make one with: raypipe export RUN {path.name}")
    if path.is_dir():
        ensemble = load_ensemble(path, trust_code=trust_code)
        ensemble.require_one_store("bench")
        info = ensemble.info
        kind, n_networks = "bundle", len(info.members)
        n_channels, n_times, sfreq = len(info.channels), info.n_times, info.sfreq
    else:
        kind, graph = kind_of(path), read_graph_info(path)
        n_networks, n_channels, n_times, sfreq = graph.n_networks, len(graph.channels), graph.n_times, graph.sfreq
    request = {
        "file": str(path.resolve()),
        "kind": kind,
        "shape": [n_channels, n_times],
        "batch": BATCH,
        "threads": threads,
        "seconds": seconds,
        "raypipe": str(Path(__file__).parents[2]),
        "trust_code": trust_code,
    }
    found = _measured(path, request)
    limits = "its own number of threads" if threads is None else f"{threads} thread{'s' * (threads > 1)}"
    one_ms = 1e3 * np.array(found.one_s)
    return Speed(
        path=path,
        what=f"{found.what}, {limits}",
        windows=f"{n_channels} channels x {n_times} samples at {sfreq:g} Hz",
        n_networks=n_networks,
        latency_ms=(float(np.median(one_ms)), float(np.percentile(one_ms, 99))),
        runs=len(one_ms),
        windows_per_s=found.windows_per_s,
        batches=found.batches,
        load_s=found.load_s,
        load_mb=found.load_mb,
        peak_mb=found.peak_mb,
    )


def _measured(path: Path, request: dict[str, Any]) -> _Measured:
    """Return what the process has measured."""
    with scratch_folder() as scratch:
        n_channels, n_times = request["shape"]
        x_NCT = reference_windows(n_channels, n_times, n=N_WINDOWS) * np.float32(INPUT_SCALE)
        np.save(scratch / "windows.npy", x_NCT)
        request |= {"windows": str(scratch / "windows.npy")}
        try:
            return run_script(graph_runner.__file__, [], scratch, request, _MEASURED, what="the graph")
        except ScorerProcessError as error:
            raise UserError(f"{path}: {error}") from None
