"""The public function `cross_validate` and its result: nested cross-validation of a whole search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.core.options import SweepOptions, document_options
from raypipe.core.outputs import as_columns
from raypipe.reporting.run import Run
from raypipe.storage.outer_run import OuterRun

if TYPE_CHECKING:
    import pandas as pd

    from raypipe.core.progress import Progress
    from raypipe.core.search_space import Space
    from raypipe.core.stop import StopRequest
    from raypipe.core.store_names import Data
    from raypipe.ensembles.outer import OuterScores
    from raypipe.trial.callback import SweepCallback


class CrossValidation:
    """An outer cross-validation: the run of each part, and the score of all subjects.

    Parameters
    ----------
    run
        Folder or pyarrow.fs URI that ``raypipe sweep --outer`` or `cross_validate` was given.

    Raises
    ------
    UserError
        There is none, or it is damaged.

    Examples
    --------
    >>> CrossValidation("demo/cv").ensemble().verdict  # doctest: +SKIP
    """

    def __init__(self, run: str | Path) -> None:
        self.store = OuterRun(run)

    def __repr__(self) -> str:
        return f"CrossValidation({self.where!r}): {len(self.store.info.parts)} parts"

    @property
    def where(self) -> str:
        """Path or URI."""
        return self.store.where

    @property
    def parts(self) -> list[Run]:
        """Runs of the parts that are begun."""
        return [Run(run) for run in self.store.runs]

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
    ) -> CrossValidation:
        """Fit and save the ensemble of every part, and score it once on the subjects that the part holds out.

        Parts whose ensemble is up to date are left as they are.

        Parameters
        ----------
        top, method, max_members, max_mb, distilled, device, so_far, progress
            See `raypipe.fit_ensemble`, which also describes the errors.

        Returns
        -------
        CrossValidation
            This one.
        """
        from raypipe.ensembles.outer import fit_parts

        fit_parts(
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
        return self

    @property
    def scores(self) -> OuterScores:
        """Scores of all subjects: ``score``, ``interval``, ``constant``, ``difference``, ``by_part``, ``parameters``.

        ``held_out_evaluations`` is how often the subject was scored who was scored most often, and ``notes`` say so
        from the second time on.

        Raises
        ------
        UserError
            A part has no ensemble yet.
        """
        from raypipe.ensembles.outer import read_scores

        return read_scores(self.store)

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        from raypipe.ensembles.outer import write_verdict

        return write_verdict(self.store, self.scores)

    def predictions(self) -> pd.DataFrame:
        """Return the predictions of all windows, each by the part that holds out its subject.

        Returns
        -------
        pandas.DataFrame
            ``window``, ``subject``, ``part``, ``target``, and ``prediction`` in target units, or one column of
            probabilities per class.
        """
        import pandas as pd

        pooled, outputs = self.scores.pooled, self.store.runs[0].info.outputs
        names = self.store.info.classes or [f"prediction_{name}" for name in outputs] or ["prediction"]
        targets = [f"target_{name}" for name in outputs] or ["target"]
        table = pd.DataFrame(pooled.predictions, columns=pd.Index(names))
        for place, name in enumerate(("windows", "subjects", "parts")):
            table.insert(place, name.removesuffix("s"), getattr(pooled, name))
        for k, (name, y_N) in enumerate(zip(targets, as_columns(pooled.targets).T, strict=True)):
            table.insert(3 + k, name, y_N)
        return table

    def status(self) -> str:
        """Return what ``raypipe status`` prints."""
        from raypipe.reporting.outer import status_lines

        return "\n".join(status_lines(self.store))

    def report(self, out: str | Path | None = None) -> str:
        """Write the report, one HTML file, and return its path or URI.

        Parameters
        ----------
        out
            The file. None: ``report.html`` in the folder.
        """
        from raypipe.reporting.outer import write_outer_report

        return write_outer_report(self.store, out)


@document_options(SweepOptions)
def cross_validate(
    space: Space,
    data: Data,
    run: str | Path,
    *,
    outer: int = 5,
    init: str | Path | None = None,
    callback: SweepCallback | None = None,
    stop: StopRequest | None = None,
    **options: Any,
) -> CrossValidation:
    """Search once for each of `outer` parts of the subjects, which that search does not see.

    The same call continues after a crash. `CrossValidation.ensemble` then scores all subjects, each by a search that
    has not seen them (nested cross-validation, Varma & Simon 2006, doi:10.1186/1471-2105-7-91). `held_out` cannot be
    given, and `time_budget` and `gpu_hours` are divided among the parts.

    Parameters
    ----------
    space, data, init, callback, stop
        See `raypipe.sweep`.
    run
        Folder or pyarrow.fs URI. The parts are runs in it: ``part-1`` and so on.
    outer
        Number of parts.
    {options}

    Returns
    -------
    CrossValidation
        The runs, finished or stopped by a limit.

    Raises
    ------
    UserError
        Bad input, fewer subjects than parts, or the same failure in all of the first trials.
    InterruptedSweepError
        The search was stopped, and can be continued.
    LeakError
        A subject is on both sides of a split.

    Examples
    --------
    >>> cross_validate("smoke", "demo/store", "demo/cv", trials=2, folds=3)  # doctest: +SKIP
    """
    from raypipe.reporting.notebook import cell

    with cell(callback, stop) as (callback, stop):
        from raypipe.search.outer import sweep_outer

        done = sweep_outer(space, data, run, outer=outer, init=init, callback=callback, stop=stop, **options)
    return CrossValidation(done.where)
