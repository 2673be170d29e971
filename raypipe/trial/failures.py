"""The second try of a trial that ran out of memory: the same mathematics in micro-batches of half the batch."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, replace
from typing import Literal

from raypipe.core.errors import DiskFullError, NonFiniteError, StorageError, UserError, out_of_memory
from raypipe.core.record import Record
from raypipe.storage.files import read_record, write_record
from raypipe.storage.records import TrialResult, trial_file
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import TrialLog

FILE = "retry.json"


class Retry(Record):
    """How a trial is tried again (``trials/0007/retry.json``). It stays with the trial, whoever goes on with it."""

    format: Literal["raypipe-retry/1"] = "raypipe-retry/1"
    micro_batch: int
    """Windows whose gradients are computed at a time; the batch, its statistics and its step stay as they are."""
    reason: str


def read_retry(run: RunStore, number: int) -> Retry | None:
    """How the trial is tried again; None in its first try."""
    name = trial_file(number, FILE)
    return read_record(Retry, run.folder, name) if run.folder.exists(name) else None


def retry_or_fail(run: RunStore, number: int, failure: Failure, who: str) -> Failure | None:
    """Decide what a failure leads to, and record a second try.

    Parameters
    ----------
    run, number
        The trial.
    failure
        Why it cannot go on.
    who
        Whose log says so.

    Returns
    -------
    Failure or None
        What the trial fails with, or None: it is to be tried once more, from where its checkpoints stand.
    """
    if failure.kind != OUT_OF_MEMORY:
        return failure
    before = read_retry(run, number)
    if before is not None:
        return replace(failure, reason=f"{failure.reason} (also in micro-batches of {before.micro_batch})")
    half = (run.config(number).batch_size + 1) // 2
    write_record(run.folder, trial_file(number, FILE), Retry(micro_batch=half, reason=failure.reason))
    text = f"{failure.reason}; tried once more in micro-batches of {half}\n{failure.trace}"
    TrialLog(run.folder, number, who).write(text)
    return None


@dataclass(frozen=True)
class Failure:
    """Why a trial cannot go on: the kind of `store.TrialResult`, one line, and the end of the traceback."""

    kind: str
    reason: str
    trace: str = ""


OUT_OF_MEMORY = "out-of-memory"


def classify_failure(error: Exception) -> Failure:
    """Tell kinds of failure apart; of these, only memory that ran out is worth a second try (`retry_or_fail`)."""
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


class DrawError(UserError):
    """The space drew a configuration that is not valid; `result` is what its trial ended with."""

    def __init__(self, result: TrialResult) -> None:
        super().__init__(f"trial {result.number}: {result.reason}")
        self.result = result
