"""A run, read back: its trials as a table, its out-of-fold predictions, its ensemble. Ray need not run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.store import RunStore

if TYPE_CHECKING:
    import pandas as pd

    from raypipe.ensemble import Ensemble


class Run:
    """A run, to look at: ``Run("runs/first").trials``.

    Parameters
    ----------
    run
        Its folder or URI.
    """

    def __init__(self, run: RunStore | str | Path) -> None:
        self.store = run if isinstance(run, RunStore) else RunStore.open(run)

    @property
    def where(self) -> str:
        """Path or URI of the run."""
        return self.store.where

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial: state, score, each fold's score, time, failure and parameters; see `trials_table`."""
        from raypipe.trials import trials_table

        return trials_table(self.store)

    def oof(self, number: int) -> pd.DataFrame:
        """Out-of-fold predictions of a trial: window, fold and one column an output."""
        import pandas as pd

        oof = self.store.oof(number)
        names = self.store.info.classes or ["prediction"]
        table = pd.DataFrame(oof.predictions, columns=pd.Index(names))
        table.insert(0, "window", oof.windows)
        table.insert(1, "fold", oof.folds)
        return table

    def ensemble(self, **options: Any) -> Ensemble:
        """Fit an ensemble on out-of-fold predictions and score it on the held-out subjects; see `fit_ensemble`."""
        from raypipe.ensemble import fit_ensemble

        return fit_ensemble(self.store, **options)
