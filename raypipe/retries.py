"""The second try of a trial that ran out of memory: the same mathematics in micro-batches of half the batch."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from raypipe.files import write_json
from raypipe.logs import TrialLog
from raypipe.messages import OUT_OF_MEMORY, Failure
from raypipe.records import in_trial, valid
from raypipe.store import RunStore

FILE = "retry.json"


class Retry(BaseModel):
    """How a trial is tried again (``trials/0007/retry.json``). It stays with the trial, whoever goes on with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_batch: int
    """Windows whose gradients are computed at a time; the batch, its statistics and its step stay as they are."""
    reason: str


def retry_of(run: RunStore, number: int) -> Retry | None:
    """How the trial is tried again; None in its first try."""
    name = in_trial(number, FILE)
    return valid(Retry, run.folder, name) if run.folder.exists(name) else None


def second_try(run: RunStore, number: int, failure: Failure, who: str) -> Failure | None:
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
    before = retry_of(run, number)
    if before is not None:
        return replace(failure, reason=f"{failure.reason} (also in micro-batches of {before.micro_batch})")
    half = (run.config(number).batch_size + 1) // 2
    write_json(run.folder, in_trial(number, FILE), Retry(micro_batch=half, reason=failure.reason).model_dump())
    text = f"{failure.reason}; tried once more in micro-batches of {half}\n{failure.trace}"
    TrialLog(run.folder, number, who).say(text)
    return None
