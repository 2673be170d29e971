"""Record every time that a run is scored on its held-out subjects (``ensemble/evaluations.json``)."""

from __future__ import annotations

import time
from typing import Literal

from raypipe.core.record import FrozenModel, Record
from raypipe.storage.files import read_record, write_record
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


class EvaluationLog(Record):
    """All scorings of a run's held-out subjects, in order."""

    format: Literal["raypipe-evaluations/1"] = "raypipe-evaluations/1"
    evaluations: list[HeldOutEvaluation]


def read_evaluations(run: RunStore) -> list[HeldOutEvaluation]:
    """Return all scorings of a run's held-out subjects so far."""
    if not run.folder.exists(EVALUATION_LOG):
        return []
    return read_record(EvaluationLog, run.folder, EVALUATION_LOG).evaluations


def record_evaluation(run: RunStore, trials: list[int], method: str) -> int:
    """Record a scoring of the held-out subjects before its score is shown; return the number of scorings so far."""
    evaluations = [*read_evaluations(run), HeldOutEvaluation(time=time.time(), trials=trials, method=method)]
    write_record(run.folder, EVALUATION_LOG, EvaluationLog(evaluations=evaluations))
    return len(evaluations)
