"""Forecast of a sweep's time, memory and disk, from a few training steps of some of its configurations."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raypipe.backend.remote_call import RemoteSite, connect
from raypipe.backend.resources import divide_resources
from raypipe.core.addresses import check_cluster_address
from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError
from raypipe.core.folds import FoldMap
from raypipe.core.gpu_share import reserved_gpu_share
from raypipe.core.options import parse_options
from raypipe.core.progress import Progress, no_progress
from raypipe.core.search_space import SearchSpace, Space, load_space
from raypipe.core.store_names import Data
from raypipe.core.text import format_bytes, format_duration
from raypipe.data.splits import folds_of, outer_parts_of
from raypipe.data.window_cache import open_windows
from raypipe.search.example_configs import start_configs
from raypipe.search.measurement import Cost, Measurement, cached_loaders, measure
from raypipe.search.preflight import check_space, foreseen_warnings
from raypipe.storage.records import KEPT_TRIALS
from raypipe.trial.callback import SweepCallback

MAX_START = 16
"""START points that are measured. Those of several families begin with the ones that take seconds, so the first few say
nothing of the others."""
MIN_DRAWS, MIN_CONFIGS = 4, 6
"""Draws that are measured beside them, more where there are fewer configurations than `MIN_CONFIGS`."""
START_SECONDS = 12.0
"""Seconds from the command to the first epoch (benchmarks/RESULTS.md)."""
CHECKPOINTS_PER_FOLD = 3
"""Checkpoints that a running trial holds of each fold."""


@dataclass(frozen=True)
class Forecast:
    """Cost of a sweep if no trial stops early; early stopping and halving reduce it."""

    trials: int
    folds: int
    workers: int
    """Workers per trial."""
    concurrent: int
    """Trials at a time."""
    cpus: float
    """Cores per worker."""
    gpus: float
    """GPUs per worker."""
    device: str
    """Where it was measured."""
    costs: list[Cost]
    memory: int
    """Peak resident bytes of the measuring process, which trained one fold."""
    gpu_memory: int = 0
    """Peak bytes on the GPU, with one fold."""
    worker_gpu_memory: int = 0
    """Bytes of the GPU that a worker may use."""
    warnings: Sequence[str] = ()
    """Lines about the space, such as one that names the parameters that it draws without effect."""
    parts: int = 1
    """Searches of an outer cross-validation, one after another, among which `trials` are divided."""

    def seconds(self, trial: float) -> float:
        """Return the seconds of the sweep if every trial takes `trial` seconds on one worker."""
        largest_share = -(-self.folds // self.workers) / self.folds  # of the worker with the most folds
        rounds = self.parts * -(-self.trials // (self.parts * self.concurrent))
        return START_SECONDS + rounds * trial * largest_share

    @property
    def likely(self) -> float:
        """Return the seconds of the sweep, by the mean of the configurations."""
        return self.seconds(statistics.fmean(cost.trial for cost in self.costs))

    @property
    def range(self) -> tuple[float, float]:
        """Return the seconds of the sweep if all trials were as the fastest configuration, and as the slowest."""
        trials = [cost.trial for cost in self.costs]
        return self.seconds(min(trials)), self.seconds(max(trials))

    @property
    def gpu_hours(self) -> float:
        """Return the GPU-hours that the workers hold from the beginning to the end, as ``--gpu-hours`` counts them."""
        return self.likely * self.workers * self.concurrent * reserved_gpu_share(self.gpus) / 3600

    @property
    def disk(self) -> int:
        """Return the bytes of the run: results of all trials, and checkpoints of those that run."""
        results = self.trials * max(cost.result for cost in self.costs)
        checkpoint = max(cost.checkpoint for cost in self.costs)
        return results + CHECKPOINTS_PER_FOLD * self.folds * self.concurrent * checkpoint

    @property
    def tidied_disk(self) -> int:
        """Return the bytes of the run after `raypipe tidy`, which keeps the weights of the best trials."""
        without = self.trials * max(cost.result - cost.weights for cost in self.costs)
        return without + min(self.trials, self.parts * KEPT_TRIALS) * max(cost.weights for cost in self.costs)

    def render(self) -> str:
        """Return the forecast as text."""
        low, high = self.range
        parameters = sorted({cost.parameters for cost in self.costs})
        gpus = f" and {self.gpus:g} GPU(s)" if self.gpus else ""
        lines = [
            f"{self.trials} trials of {self.folds} folds: {self.concurrent} at a time, "
            f"{self.workers} worker(s) each with {self.cpus:g} core(s){gpus}",
            f"measured   {len(self.costs)} configurations on {self.device}: "
            f"{' to '.join(f'{n:,}' for n in dict.fromkeys([parameters[0], parameters[-1]]))} parameters, a step takes "
            f"{_span([cost.step for cost in self.costs])}, an epoch of a fold "
            f"{_span([cost.epoch for cost in self.costs])}",
            f"time       {format_duration(self.likely)} ({format_duration(low)} if all trials were as the fastest, "
            f"{format_duration(high)} as the slowest)",
        ]
        if self.gpus:
            lines.append(f"GPU-hours  {self.gpu_hours:.2g}, held from the beginning to the end")
            used, share = format_bytes(self.gpu_memory), format_bytes(self.worker_gpu_memory)
            lines.append(f"GPU memory {used} per worker with one fold, of {share}")
        lines += [
            f"memory     {format_bytes(self.memory)} of the machine's per worker with one fold",
            f"disk       {format_bytes(self.disk)} in the run, {format_bytes(self.tidied_disk)} after raypipe tidy",
            "Early stopping and halving reduce these numbers; several workers that share a machine's memory bandwidth "
            "take longer.",
        ]
        lines += [f"Warning: {line}" for line in self.warnings]
        return "\n".join(lines)


def forecast(
    space: Space,
    data: Data,
    *,
    cpus: float | None = None,
    gpus: float | None = None,
    address: str | None = None,
    outer: int | None = None,
    progress: Progress = no_progress,
    callback: SweepCallback | None = None,
    **options: Any,
) -> Forecast:
    """Measure a few steps of a space's START points and of some draws, and estimate the cost of the sweep.

    Parameters
    ----------
    space, data
        As in `sweep`.
    cpus, gpus
        Cores and GPUs of the sweep in all, reckoned as of one machine. None: those of the cluster; without one, this
        machine's cores and no GPU.
    address
        Address of a Ray cluster. It is measured on one of its machines, with a worker's resources. None: this machine.
    outer
        Parts of an outer cross-validation, whose searches all count; None for one search.
    progress
        Called before each configuration.
    callback
        Its `on_waiting` is called while no machine of the cluster is free.
    **options
        As in `sweep`: `trials`, `folds`, `repeats`, `held_out`, `workers`, `cpus_per_worker`, `gpus_per_worker`,
        `concurrent`.

    Raises
    ------
    UserError
        Bad input, workers that do not fit, or no cluster at the address.
    """
    check_cluster_address(address)
    chosen = parse_options({name: value for name, value in options.items() if value is not None})
    windows = open_windows(data)
    source = load_space(space, windows.names)
    if outer is not None:
        part = outer_parts_of(windows, outer, chosen.seed)[0]
        chosen = chosen.model_copy(update={"held_out": part, "trials": outer * chosen.trials})
    folds = folds_of(windows, chosen.folds, chosen.held_out, chosen.seed, chosen.repeats)
    given = _given_resources(cpus, gpus)
    if not address:
        divide_resources(chosen, folds.n_folds, _machines([_this_machine()], given))  # fails before the measurement
    source.check()
    warnings = check_space(source, windows, folds) + foreseen_warnings(source, windows)
    worker = {"cpus": chosen.cpus_per_worker, "gpus": chosen.gpus_per_worker}
    with _site(address, callback or SweepCallback(), worker) as site:
        found = _measure_all(site, windows.where, folds, _configurations(source), worker, progress)
        workers, concurrent = divide_resources(chosen, folds.n_folds, _machines(site.nodes(), given))
    return Forecast(
        trials=chosen.trials,
        folds=folds.n_folds,
        workers=workers,
        concurrent=concurrent,
        **worker,
        device=found[-1].device,
        costs=[one.cost for one in found],
        memory=max(one.memory for one in found),
        gpu_memory=max(one.gpu_memory for one in found),
        worker_gpu_memory=min(one.worker_gpu_memory for one in found),
        warnings=warnings,
        parts=outer or 1,
    )


def _given_resources(cpus: float | None, gpus: float | None) -> dict[str, float]:
    """Return the resources that were given, by Ray's names."""
    given = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount is not None}
    for name, amount in given.items():
        if not (math.isfinite(amount) and (amount > 0 or (name == "GPU" and amount == 0))):
            raise UserError(f"--{name.lower()}s {amount:g}: must be above 0, the number that the sweep will use")
    return given


def _this_machine() -> dict[str, float]:
    return {"CPU": float(os.cpu_count() or 1), "GPU": 0.0}


def _machines(nodes: list[dict[str, float]], given: dict[str, float]) -> list[dict[str, float]]:
    """Return the resources of each machine of the sweep: those there are, or one with what was given."""
    if not given:
        return nodes
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    return [total | given]


def _configurations(source: SearchSpace) -> list[TrialConfig]:
    start = start_configs(source)[:MAX_START]
    return [*start, *source.draw(max(MIN_DRAWS, MIN_CONFIGS - len(start)))]


@contextlib.contextmanager
def _site(address: str | None, callback: SweepCallback, worker: dict[str, float]) -> Iterator[RemoteSite]:
    """Yield the place of the measurement: a machine of a cluster, or this process."""
    if address:
        with connect(address, callback, **worker) as site:
            yield site
        return
    try:
        yield RemoteSite(lambda function, *arguments: function(*arguments), lambda: [_this_machine()])
    finally:
        cached_loaders.cache_clear()  # the store may be written again before the next forecast


def _measure_all(
    site: RemoteSite,
    where: str,
    folds: FoldMap,
    configs: list[TrialConfig],
    worker: dict[str, float],
    progress: Progress,
) -> list[Measurement]:
    found: list[Measurement] = []
    for number, config in enumerate(configs):
        progress(number, len(configs), "configurations measured")
        found.append(site.run(measure, where, folds, config, worker))
    return found


def _span(seconds: list[float]) -> str:
    """Write the median and the range of times."""
    return f"{statistics.median(seconds):.2g} s ({min(seconds):.2g} to {max(seconds):.2g})"
