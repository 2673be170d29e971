"""The record of a run's driver, and what drivers have used."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from raypipe.core.record import FrozenModel
from raypipe.storage.records import OwnedRecord


class Usage(NamedTuple):
    """What the drivers of a run have used."""

    seconds: float = 0.0
    gpu_hours: float = 0.0


class Resources(FrozenModel):
    """What a driver's trials take of its cluster."""

    workers: int
    """Workers per trial."""
    concurrent: int
    """Trials that run at a time."""
    cpus: float
    """Cores per worker."""
    gpus: float
    """GPUs per worker."""
    total_cpus: float
    total_gpus: float
    """Cores and GPUs of the cluster."""

    def used(self, trials: int) -> list[str]:
        """Return lines such as ``4 of 8 cores used`` while so many trials run."""
        workers = trials * self.workers
        amounts = (("cores", self.cpus, self.total_cpus), ("GPUs", self.gpus, self.total_gpus))
        return [f"{min(workers * each, total):g} of {total:g} {name} used" for name, each, total in amounts if total]


class DriverRecord(OwnedRecord):
    """The process that drives a run or that drove it last (``driver.json``)."""

    format: Literal["raypipe-driver/3"] = "raypipe-driver/3"
    id: str
    """Random, and new for every lease."""
    host: str
    pid: int
    started: float
    """Unix time (s) at which this driver took the lease."""
    spent: float
    """Seconds that this and earlier drivers have driven the run."""
    gpu_hours: float
    """Hours of GPUs that this and earlier drivers have held."""
    beat: float
    """Unix time (s) of the last heartbeat by the clock of its host, which may be wrong."""
    resources: Resources | None = None
    """None until the cluster has them."""
    ended: bool = False
    """The driver has given the lease back."""
    alive: bool = Field(default=False, exclude=True)
    """The driver still drives the run; set by `read_lease`, not stored."""

    @property
    def heartbeat(self) -> tuple[str, float, float]:
        """Return what changes with every heartbeat."""
        return self.id, self.beat, self.spent
