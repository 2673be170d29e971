"""Kinds of failure of a trial, and what is tried after out-of-memory errors.

First a GPU's copy of the store is given up, if there is one. Then the trial is trained in micro-batches of half the
batch.
"""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass, replace
from typing import Literal

from raypipe.core.config import OwnLossConfig
from raypipe.core.errors import DiskFullError, NonFiniteError, StorageError, UserError, out_of_memory
from raypipe.storage.files import write_record
from raypipe.storage.records import OwnedRecord, TrialResult, read_owned, trial_file
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import TrialLog

RETRY_FILE = "retry.json"
OUT_OF_MEMORY = "out-of-memory"
UNUSABLE_WORKERS = "unusable-workers"
"""Kind of failure of workers that would fail the same way after a restart; it ends the sweep."""


class Retry(OwnedRecord):
    """The retry of a trial (``trials/0007/retry.json``), on whichever worker continues it."""

    format: Literal["raypipe-retry/3"] = "raypipe-retry/3"
    streamed: bool
    """The store is not kept on the GPU; batches are the same."""
    micro_batch: int | None
    """Windows whose gradients are computed at a time; the batch, its statistics and its step stay as they are. None
    for all of them."""
    reason: str


@dataclass(frozen=True)
class Failure:
    """Why a trial cannot continue."""

    kind: str
    """See `TrialResult.failure`."""
    reason: str
    """One line."""
    trace: str = ""
    """End of the traceback."""
    resident: bool = False
    """The store was kept on the GPU whose memory ran out."""


class DrawError(UserError):
    """The search space drew an invalid configuration; `result` is how its trial ended."""

    def __init__(self, result: TrialResult) -> None:
        super().__init__(f"trial {result.number}: {result.reason}")
        self.result = result


def read_retry(run: RunStore, number: int) -> Retry | None:
    """Return how a trial is retried; None if it was not."""
    name = trial_file(number, RETRY_FILE)
    return read_owned(Retry, run.folder, name, run.run_id, number) if run.folder.exists(name) else None


def keeps_windows(run: RunStore, number: int) -> bool:
    """Return whether a trial may be trained with the store on the GPU; its retry may need that memory."""
    retry = read_retry(run, number)
    return retry is None or not retry.streamed


def retry_or_fail(run: RunStore, number: int, failure: Failure, writer: str) -> Failure | None:
    """Decide whether a failed trial is retried, and record the retry.

    Parameters
    ----------
    run, number
        The trial.
    failure
        Why it cannot continue.
    writer
        Name of the process in the trial's log.

    Returns
    -------
    Failure or None
        The failure that ends the trial; None if it is retried from its checkpoints.
    """
    if failure.kind != OUT_OF_MEMORY or run.config(number).model.closed_form:
        return failure
    before = read_retry(run, number)
    if before is not None and before.micro_batch is not None:
        return replace(failure, reason=f"{failure.reason} (also in micro-batches of {before.micro_batch})")
    gives_up_store = failure.resident and before is None
    if not gives_up_store and isinstance(run.config(number).loss, OwnLossConfig):
        return failure  # a batch is not divided under a loss that may be no mean over windows
    half = None if gives_up_store else (run.config(number).batch_size + 1) // 2
    way = f"in micro-batches of {half}" if half else "with windows copied to the GPU batch by batch"
    streamed = gives_up_store or before is not None
    retry = Retry(run=run.run_id, number=number, streamed=streamed, micro_batch=half, reason=failure.reason)
    write_record(run.folder, trial_file(number, RETRY_FILE), retry)
    TrialLog(run.folder, number, writer).write(f"{failure.reason}; retried {way}\n{failure.trace}")
    return None


def classify_failure(error: Exception, *, resident: bool = False) -> Failure:
    """Return the kind of failure of an error; only out-of-memory errors are retried (`retry_or_fail`).

    Parameters
    ----------
    error
        The error.
    resident
        Whether the store was kept on the GPU.
    """
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
        place = "GPU" if re.search("CUDA|CUDNN|find an engine", str(error)) else "host"
        reason = f"no memory left on the {place}" + (f": {line}" if line else "")
        return Failure(OUT_OF_MEMORY, reason, trace, resident=resident and place == "GPU")
    return Failure("error", f"{type(error).__name__}: {line}", trace)
