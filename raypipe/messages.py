"""What passes between folds, the referee and the desk. Light: no torch, so that the desk's process stays small."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import DiskFullError, NonFiniteError, StorageError, UserError, out_of_memory

OUT_OF_MEMORY = "out-of-memory"


@dataclass(frozen=True)
class FoldEpoch:
    """What one epoch of one fold gave."""

    loss: float
    """Mean training loss."""
    predictions: NDArray[np.float32]
    """(V, outputs) of the fold's validation windows: values in target units, or class probabilities; where the network
    tells variances, a column more."""
    seconds: float
    by_fold: bool = False
    """The fold chooses its epoch by itself, and the predictions are those of the chosen one."""
    stopped: bool = False
    """The fold has stopped by itself."""


@dataclass(frozen=True)
class Reply:
    """What a worker is told after an epoch."""

    go: bool
    """Train the next epoch."""
    best: int
    """Best epoch so far: its checkpoints are kept."""


@dataclass(frozen=True)
class Job:
    """A trial for a worker group, to be trained from the epoch after `done`. `seq` counts the group's jobs."""

    seq: int
    number: int
    done: int


@dataclass(frozen=True)
class Failure:
    """Why a trial cannot go on: the kind of `store.TrialResult`, one line, and the end of the traceback."""

    kind: str
    reason: str
    trace: str = ""


@dataclass(frozen=True)
class Crew:
    """How trials are run: what every slot and worker of a sweep is given."""

    run: str
    windows: str
    desk: Any
    scratch: str
    workers: int
    cpus: float
    gpus: float
    stem: str
    stack: str
    grows: bool
    """Whether the cluster may grow (`groups.Workers`)."""


def describe(error: Exception) -> Failure:
    """Tell kinds of failure apart; of these, only memory that ran out is worth a second try (`raypipe.retries`)."""
    line = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, DiskFullError):
        return Failure("disk-full", line)
    if isinstance(error, StorageError):
        return Failure("storage", line)
    if isinstance(error, NonFiniteError):
        return Failure("non-finite", line)
    if isinstance(error, UserError):
        return Failure("bad-configuration", line)
    trace = traceback.format_exc(limit=-8)
    if out_of_memory(error):
        place = "GPU" if "CUDA" in str(error) else "host"
        return Failure(OUT_OF_MEMORY, f"no memory left on the {place}" + (f": {line}" if line else ""), trace)
    return Failure("error", f"{type(error).__name__}: {line}", trace)
