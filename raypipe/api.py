"""The public API: what a notebook or a script imports from raypipe, and all that it needs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.storage.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd

    from raypipe.data.prepare import prepare
    from raypipe.data.window_cache import open_windows
    from raypipe.ensembles.fit import Ensemble, fit_ensemble
    from raypipe.packaging.bundle import load_ensemble
    from raypipe.packaging.export import export
    from raypipe.packaging.predict import predict
    from raypipe.pretraining.encoders import load_encoder
    from raypipe.trial.callback import SweepCallback

__all__ = [
    "Run",
    "SweepCallback",
    "export",
    "fit_ensemble",
    "load_encoder",
    "load_ensemble",
    "open_windows",
    "predict",
    "prepare",
    "rerun",
    "resume",
    "sweep",
]

_WHERE = {
    "SweepCallback": "raypipe.trial.callback",
    "export": "raypipe.packaging.export",
    "fit_ensemble": "raypipe.ensembles.fit",
    "load_encoder": "raypipe.pretraining.encoders",
    "load_ensemble": "raypipe.packaging.bundle",
    "open_windows": "raypipe.data.window_cache",
    "predict": "raypipe.packaging.predict",
    "prepare": "raypipe.data.prepare",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: only what is asked for is loaded.
    if name not in _WHERE:
        raise AttributeError(f"module 'raypipe.api' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)


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
        from raypipe.reporting.trial_table import trials_table

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
        from raypipe.ensembles.fit import fit_ensemble

        return fit_ensemble(self.store, **options)


def sweep(
    space: str | Path,
    data: str | Path,
    run: str | Path,
    *,
    warm_start: str | Path | None = None,
    init: str | Path | None = None,
    callback: SweepCallback | None = None,
    **options: Any,
) -> Run:
    """Search `space` on the windows of `data`, in the run folder `run`; see `raypipe.search.sweep.sweep`."""
    from raypipe.search import sweep as search

    return Run(search.sweep(space, data, run, warm_start=warm_start, init=init, callback=callback, **options))


def resume(run: str | Path, *, callback: SweepCallback | None = None, **changes: Any) -> Run:
    """Continue a run with its own options; `changes` replace some of them. See `raypipe.search.sweep.resume`."""
    from raypipe.search import sweep as search

    return Run(search.resume(run, callback=callback, **changes))


def rerun(
    run: str | Path,
    *,
    top: int = 3,
    seeds: int = 5,
    callback: SweepCallback | None = None,
    **changes: Any,
) -> Run:
    """Train a run's best trials again on new seeds. See `raypipe.search.sweep.rerun`."""
    from raypipe.search import sweep as search

    return Run(search.rerun(run, top=top, seeds=seeds, callback=callback, **changes))
