"""The public class `Run`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd

    from raypipe.core.progress import Progress
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
        """Return folder, target, trials, the best score, and whether held-out people were scored."""
        return f"Run({self.where!r}): {self._facts('target ' + self.store.info.target)}"

    def _facts(self, first: str) -> str:
        from raypipe.core.errors import UserError
        from raypipe.reporting.notebook import run_facts

        try:
            return f"{first}, {run_facts(self.store).line()}"
        except UserError as error:  # a damaged record is no reason for an object without a text
            return f"{first}; {error}"

    def _repr_html_(self) -> str | None:
        from raypipe.core.errors import UserError
        from raypipe.reporting.notebook import run_html

        try:
            return run_html(self.store)
        except UserError:
            return None

    @property
    def where(self) -> str:
        """Path or URI of the run."""
        return self.store.where

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial: state and score, the parameters that vary, then folds, times, failures and the others."""
        from raypipe.reporting.trial_table import trials_table, varied_parameters

        table = trials_table(self.store)
        first = ["state", "score", *varied_parameters(table)]
        return table[[*first, *(name for name in table if name not in first)]]

    def oof(self, number: int | None = None) -> pd.DataFrame:
        """Return the out-of-fold predictions of a trial, with the targets.

        Parameters
        ----------
        number
            Number of the trial. None: the best one.

        Returns
        -------
        pandas.DataFrame
            One row per window, and per repeat where folds are repeated: ``window``, its number in the store, or where
            the run has several stores, its number among the windows that all of them have, in the order of the first;
            ``recording`` and ``onset`` in seconds, the same in every store to a millisecond; ``subject``; ``target``,
            a value or a class, of several values ``target_NAME`` for each; ``fold``; ``prediction`` in target units,
            of several values ``prediction_NAME`` for each; or ``probability_CLASS`` for each class and the most
            probable one as ``prediction``.

        Raises
        ------
        UserError
            The trial has no predictions, they are damaged, or the run's windows are not there.
        """
        from raypipe.reporting.oof_table import oof_table

        return oof_table(self.store, number)

    def status(self) -> str:
        """Return what ``raypipe status`` prints: trials, scores, failures and time left."""
        from raypipe.reporting.plain_console import PlainConsole
        from raypipe.reporting.status import read_status
        from raypipe.reporting.tables import show_status

        text = io.StringIO()
        show_status(PlainConsole(file=text, width=120), read_status(self.store))
        return text.getvalue()

    def ensemble(
        self,
        *,
        top: int = 10,
        method: str = "auto",
        max_members: int | None = None,
        max_mb: float | None = None,
        distilled: bool = False,
        device: str | None = None,
        so_far: bool = False,
        progress: Progress | None = None,
    ) -> Ensemble:
        """Fit an ensemble with `raypipe.fit_ensemble`, and save it in the run.

        Parameters
        ----------
        top, method, max_members, max_mb, distilled, device, so_far, progress
            See `raypipe.fit_ensemble`, which also describes the result and the errors.
        """
        from raypipe.ensembles.fit import fit_ensemble

        fitted = fit_ensemble(
            self.store,
            top=top,
            method=method,
            max_members=max_members,
            max_mb=max_mb,
            distilled=distilled,
            device=device,
            so_far=so_far,
            progress=progress,
        )
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
            The run has no ensemble, there are too few people, or the windows cannot be opened.
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
            Path of the file, which a notebook shows, or its URI where the run is behind one.

        Raises
        ------
        UserError
            A record of the run is damaged.
        """
        from raypipe.reporting.notebook import ReportFile
        from raypipe.reporting.report import write_report

        where = write_report(self.store, out)
        return where if isinstance(where, str) else ReportFile(where)

    def export(self, out: str | Path, *, format: str | None = None, also: Run | str | Path | None = None) -> Path:
        """Write the saved ensemble with `raypipe.export`, which describes the options, the result and the errors.

        Parameters
        ----------
        out
            Folder of the bundle, or file of a graph or a submission.
        format, also
            See `raypipe.export`.
        """
        from raypipe.packaging.export import export

        return export(self.where, out, format=format, also=also.where if isinstance(also, Run) else also)
