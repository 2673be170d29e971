"""Messages between the driver, actors and workers. Without torch, so that the broker's process stays small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from raypipe.core.options import StackOption, StemOption


@dataclass(frozen=True)
class TrialJob:
    """A trial for a worker group, to be trained from the epoch after `done`."""

    seq: int
    """Number of the job in its group, from 1."""
    run: str
    """Path or URI of the trial's run."""
    number: int
    """Number of the trial."""
    done: int
    """Epochs that are scored."""


@dataclass(frozen=True)
class PretrainLayout:
    """Number of pretraining workers, their resources, and the cluster (`PretrainOptions` has the same names)."""

    workers: int = 1
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    address: str | None = None
    """Address of the cluster; None for this machine."""


@dataclass(frozen=True)
class SweepContext:
    """Settings of a driver that every trial actor and every worker receives."""

    windows: str
    """Path or URI of the store of windows."""
    broker: ActorHandle
    """Handle of the driver's `Broker`."""
    scratch: str
    """Folder or URI for Ray's own files."""
    workers: int
    """Workers per trial."""
    cpus: float
    """Cores per worker."""
    gpus: float
    """GPUs per worker."""
    stem: StemOption
    """``--stem``: algorithm of the Conformer's stem, or ``auto``."""
    stack: StackOption
    """``--stack``: whether a worker trains its folds as one program, or ``auto``."""
    autoscaling: bool
    """Whether the cluster may start machines when it is asked to."""


@dataclass(frozen=True)
class GroupStart:
    """One start of a worker group, as its controller and its workers receive it."""

    context: SweepContext
    group: str
    """Name of the group."""
    number: int
    """Number of the start, from 0."""
    node: str
    """Id of the driver's node."""
    placement_groups: str
    """How the names of all placement groups of the worker group begin, of all its starts and of no other's."""
