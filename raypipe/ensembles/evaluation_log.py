"""Record every time that a run is scored on its held-out subjects (``ensemble/evaluations.json``)."""

from __future__ import annotations

import time
from typing import Literal

from raypipe.core.record import FrozenModel
from raypipe.storage.files import write_record
from raypipe.storage.records import OwnedRecord, read_owned
from raypipe.storage.run_store import RunStore

EVALUATION_LOG = "ensemble/evaluations.json"


class HeldOutEvaluation(FrozenModel):
    """One scoring of held-out subjects."""

    time: float
    """Unix time."""
    trials: list[int]
    """Candidates, best first."""
    method: str
    """Requested method, which may be ``auto`` or ``all``."""


class EvaluationLog(OwnedRecord):
    """All scorings of a run's held-out subjects, in order."""

    format: Literal["raypipe-evaluations/2"] = "raypipe-evaluations/2"
    evaluations: list[HeldOutEvaluation]


def read_evaluations(run: RunStore) -> list[HeldOutEvaluation]:
    """Return all scorings of a run's held-out subjects so far."""
    if not run.folder.exists(EVALUATION_LOG):
        return []
    return read_owned(EvaluationLog, run.folder, EVALUATION_LOG, run.run_id).evaluations


def record_evaluation(run: RunStore, trials: list[int], method: str) -> int:
    """Record a scoring of the held-out subjects before its score is shown; return the number of scorings so far."""
    evaluations = [*read_evaluations(run), HeldOutEvaluation(time=time.time(), trials=trials, method=method)]
    write_record(run.folder, EVALUATION_LOG, EvaluationLog(run=run.run_id, evaluations=evaluations))
    return len(evaluations)
