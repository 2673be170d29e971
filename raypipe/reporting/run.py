"""The public class `Run`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd

    from raypipe.ensembles.chance import ChanceTest
    from raypipe.ensembles.fitted import Ensemble


class Run:
    """A run: its trials, out-of-fold predictions, ensemble and report. Ray need not run.

    Parameters
    ----------
    run
        Folder or pyarrow.fs URI of the run.

    Attributes
    ----------
    store : raypipe.storage.run_store.RunStore
        The run's files.

    Raises
    ------
    UserError
        There is no run.

    Examples
    --------
    >>> Run("demo/run").trials  # doctest: +SKIP
    """

    def __init__(self, run: RunStore | str | Path) -> None:
        self.store = run if isinstance(run, RunStore) else RunStore.open(run)

    def __repr__(self) -> str:
        return f"Run({self.where!r})"

    @property
    def where(self) -> str:
        """Path or URI of the run."""
        return self.store.where

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial: state, score, score of each fold, seconds, failure and parameters."""
        from raypipe.reporting.trial_table import trials_table

        return trials_table(self.store)

    def oof(self, number: int) -> pd.DataFrame:
        """Return the out-of-fold predictions of a trial.

        Parameters
        ----------
        number
            Number of the trial.

        Returns
        -------
        pandas.DataFrame
            One row per window, and per repeat where folds are repeated: ``window``, ``fold``, and ``prediction`` in
            target units, or one column of probabilities per class.

        Raises
        ------
        UserError
            The trial has no predictions, or they are damaged.
        """
        import pandas as pd

        oof = self.store.oof(number)
        names = self.store.info.classes or ["prediction"]
        table = pd.DataFrame(oof.predictions, columns=pd.Index(names))
        table.insert(0, "window", oof.windows)
        table.insert(1, "fold", oof.folds)
        return table

    def status(self) -> str:
        """Return what ``raypipe status`` prints: trials, scores, failures and time left."""
        from raypipe.reporting.plain_console import PlainConsole
        from raypipe.reporting.status import read_status
        from raypipe.reporting.tables import show_status

        text = io.StringIO()
        show_status(PlainConsole(file=text, width=120), read_status(self.store))
        return text.getvalue()

    def ensemble(self, **options: Any) -> Ensemble:
        """Fit an ensemble with `raypipe.fit_ensemble`, and save it in the run.

        Parameters
        ----------
        **options
            Options of `raypipe.fit_ensemble`, which also describes the result and the errors.
        """
        from raypipe.ensembles.fit import fit_ensemble

        fitted = fit_ensemble(self.store, **options)
        fitted.save()
        return fitted

    def chance(self, *, permutations: int = 1000, seed: int = 0) -> ChanceTest:
        """Test the saved ensemble against chance, by shuffling the targets of the held-out people.

        Parameters
        ----------
        permutations
            Number of orders of the targets.
        seed
            Seed of the orders.

        Returns
        -------
        raypipe.ensembles.chance.ChanceTest
            ``p``, its Monte-Carlo ``error``, ``score``, and ``null``, the scores under shuffled targets.

        Raises
        ------
        UserError
            The run has no ensemble, or there are too few people.
        """
        from raypipe.ensembles.chance import chance_test

        return chance_test(self.store, permutations=permutations, seed=seed)

    def report(self, out: str | Path | None = None) -> Path | str:
        """Write the report of the run, one HTML file.

        Parameters
        ----------
        out
            The file. None: ``report.html`` in the run.

        Returns
        -------
        pathlib.Path or str
            Path of the file, or its URI where the run is behind one.

        Raises
        ------
        UserError
            A record of the run is damaged.
        """
        from raypipe.reporting.report import write_report

        return write_report(self.store, out)

    def export(self, out: str | Path, **options: Any) -> Path:
        """Write the saved ensemble with `raypipe.export`, which describes the options, the result and the errors.

        Parameters
        ----------
        out
            Folder of the bundle, or file of a graph or a submission.
        **options
            Options of `raypipe.export`.
        """
        from raypipe.packaging.export import export

        return export(self.where, out, **options)
