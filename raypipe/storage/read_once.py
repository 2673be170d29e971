"""A run whose records of trials are read once, for what shows all of them several times."""

from __future__ import annotations

from raypipe.storage.records import TrialRecord, TrialResult
from raypipe.storage.run_store import RunStore


class ReadOnce(RunStore):
    """An open run that keeps the names of its trials' files, and their records and results, as first read.

    What is shown of a run that is under way then belongs together. Histories are not kept, for they are large.

    Parameters
    ----------
    run
        The run.
    """

    def __init__(self, run: RunStore) -> None:
        super().__init__(run.folder, run.info, run.folds, run.space)
        self._listing: dict[int, set[str]] | None = None
        self._records: dict[int, TrialRecord] = {}
        self._results: dict[int, TrialResult | None] = {}

    def listing(self) -> dict[int, set[str]]:
        """Return the names of the files in every trial's folder, as they were at the first call."""
        if self._listing is None:
            self._listing = super().listing()
        return self._listing

    def record(self, number: int) -> TrialRecord:
        """Return the record of a trial; raises as `RunStore.record`."""
        if number not in self._records:
            self._records[number] = super().record(number)
        return self._records[number]

    def result(self, number: int) -> TrialResult | None:
        """Return the result of a trial, or None if it had not ended; raises as `RunStore.result`."""
        if number not in self._results:
            self._results[number] = super().result(number)
        return self._results[number]
