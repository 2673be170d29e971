"""The public API: everything that a notebook or a script needs from raypipe. All names are also in `raypipe`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.core.errors import DiskFullError, InterruptedSweepError, UserError
from raypipe.core.options import FIXED, SweepOptions, document_options
from raypipe.reporting.run import Run

if TYPE_CHECKING:
    from raypipe.core.folds import LeakError
    from raypipe.core.progress import Progress
    from raypipe.core.search_space import Space
    from raypipe.core.stop import StopRequest
    from raypipe.core.store_names import Data
    from raypipe.data.arrays import from_arrays
    from raypipe.data.epochs import from_epochs
    from raypipe.data.inspection import inspect_bids
    from raypipe.data.other_packages import from_braindecode, from_moabb
    from raypipe.data.prepare import prepare
    from raypipe.data.window_cache import open_windows
    from raypipe.ensembles.fitted import Ensemble
    from raypipe.packaging.bundle import load_ensemble
    from raypipe.packaging.predict import predict
    from raypipe.packaging.stream import stream
    from raypipe.pretraining.encoders import load_encoder
    from raypipe.reporting.cross_validation import CrossValidation, cross_validate
    from raypipe.reporting.progress_lines import PrintProgress
    from raypipe.search.pretrain import pretrain
    from raypipe.trial.callback import SweepCallback

__all__ = [
    "CrossValidation",
    "DiskFullError",
    "InterruptedSweepError",
    "LeakError",
    "PrintProgress",
    "Run",
    "StopRequest",
    "SweepCallback",
    "UserError",
    "cross_validate",
    "export",
    "fit_ensemble",
    "from_arrays",
    "from_braindecode",
    "from_epochs",
    "from_moabb",
    "inspect_bids",
    "load_encoder",
    "load_ensemble",
    "open_windows",
    "predict",
    "prepare",
    "pretrain",
    "rerun",
    "resume",
    "stream",
    "sweep",
]

MODULES = {
    "CrossValidation": "raypipe.reporting.cross_validation",
    "LeakError": "raypipe.core.folds",
    "PrintProgress": "raypipe.reporting.progress_lines",
    "StopRequest": "raypipe.core.stop",
    "SweepCallback": "raypipe.trial.callback",
    "cross_validate": "raypipe.reporting.cross_validation",
    "from_arrays": "raypipe.data.arrays",
    "from_braindecode": "raypipe.data.other_packages",
    "from_epochs": "raypipe.data.epochs",
    "from_moabb": "raypipe.data.other_packages",
    "inspect_bids": "raypipe.data.inspection",
    "load_encoder": "raypipe.pretraining.encoders",
    "load_ensemble": "raypipe.packaging.bundle",
    "open_windows": "raypipe.data.window_cache",
    "predict": "raypipe.packaging.predict",
    "prepare": "raypipe.data.prepare",
    "pretrain": "raypipe.search.pretrain",
    "stream": "raypipe.packaging.stream",
}
"""Module of each name that is imported when it is first used, because torch and Ray take seconds to import."""


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'raypipe.api' has no attribute '{name}'")
    return getattr(import_module(MODULES[name]), name)


@document_options(SweepOptions)
def sweep(
    space: Space,
    data: Data,
    run: str | Path,
    *,
    warm_start: str | Path | None = None,
    init: str | Path | None = None,
    callback: SweepCallback | None = None,
    stop: StopRequest | None = None,
    **options: Any,
) -> Run:
    """Search a space over subject folds, and continue a run that exists.

    Nothing outside the call is changed: neither environment variables nor standard output, warning filters or signal
    handlers. KeyboardInterrupt stops the sweep; the same call continues it. In a notebook, the first interrupt of the
    kernel lets the epochs under way end, and a second one stops at once.

    Parameters
    ----------
    space
        Search space: a Python file, the name of one that comes with raypipe (``raypipe spaces``), a function
        ``space(trial)``, or a dictionary of constants and ranges (docs/search-spaces.md). A run keeps the source of a
        function, and what it uses from around it.
    data
        Windows made by `prepare`: a folder, or a URI that ``raypipe push`` copied them to. Or several stores of the
        same windows by name, such as ``{"broad": "store1", "alpha": "store2"}``: trials choose one (`data/store`).
    run
        Folder or pyarrow.fs URI of the run. An existing run must have been made with the same space, data, folds,
        held-out subjects and seed.
    warm_start
        Run of the same target, labels and metric, whose trials the sampler of a new run starts from. Ignored if `run`
        exists.
    init
        Pretrained run or exported encoder, from which configurations with ``init/name=pretrained`` start. It is copied
        into a new run. Ignored if `run` exists.
    callback
        Called at every event, such as `PrintProgress`. None: in a notebook the cell shows the progress, elsewhere
        nothing is shown. ``SweepCallback()`` shows nothing anywhere.
    stop
        When another thread sets it, no trial starts and running trials stop after the epoch under way.
    {options}

    Returns
    -------
    Run
        The run, finished or stopped by a limit.

    Raises
    ------
    UserError
        Bad input, or the same failure in all of the first trials.
    InterruptedSweepError
        The sweep was stopped, and can be continued.
    LeakError
        A subject is on both sides of a split.

    Examples
    --------
    >>> sweep("smoke", "demo/store", "demo/run", trials=2, folds=4)  # doctest: +SKIP
    """
    from raypipe.reporting.notebook import cell

    with cell(callback, stop) as (callback, stop):
        from raypipe.search import sweep as search

        return Run(
            search.sweep(space, data, run, warm_start=warm_start, init=init, callback=callback, stop=stop, **options)
        )


@document_options(SweepOptions, unchanged=FIXED)
def resume(
    run: Run | str | Path,
    *,
    callback: SweepCallback | None = None,
    stop: StopRequest | None = None,
    **changes: Any,
) -> Run:
    """Continue a run with its own options. Those that are given replace them.

    Parameters
    ----------
    run
        A run that a sweep was started in.
    callback, stop
        See `sweep`.
    {options}

    Returns
    -------
    Run
        The run, finished or stopped by a limit.

    Raises
    ------
    UserError, InterruptedSweepError, LeakError
        See `sweep`. UserError also if no sweep was started in the run.
    """
    from raypipe.reporting.notebook import cell

    with cell(callback, stop) as (callback, stop):
        from raypipe.search import sweep as search

        return Run(search.resume(_where(run), callback=callback, stop=stop, **changes))


@document_options(SweepOptions, unchanged=FIXED)
def rerun(
    run: Run | str | Path,
    *,
    top: int = 3,
    seeds: int = 5,
    callback: SweepCallback | None = None,
    stop: StopRequest | None = None,
    **changes: Any,
) -> Run:
    """Train the best trials of a run again on new seeds, as trials of the same run on the same folds.

    Options of the sweep that are given replace those of the run. Called again after a crash, it trains what is missing.
    The run's time budget and GPU-hours do not count, unless they are given, also when `resume` continues. A search that
    was interrupted is not continued: a line says how.

    Parameters
    ----------
    run
        A run with complete trials.
    top
        Number of best trials. Reruns are not trained again.
    seeds
        New seeds for each of them.
    callback, stop
        See `sweep`.
    {options}

    Returns
    -------
    Run
        The run with the new trials.

    Raises
    ------
    UserError, InterruptedSweepError, LeakError
        See `sweep`. UserError also if no trial is complete.
    """
    from raypipe.reporting.notebook import cell

    with cell(callback, stop) as (callback, stop):
        from raypipe.search import sweep as search

        return Run(search.rerun(_where(run), top=top, seeds=seeds, callback=callback, stop=stop, **changes))


def fit_ensemble(
    run: Run | str | Path,
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
    """Combine the best trials by their out-of-fold predictions, and score the result on the held-out subjects.

    The ensemble is not saved, but the scoring is recorded in the run. `Run.ensemble` saves it too.

    Parameters
    ----------
    run
        A run with trials that are complete or were stopped by a limit.
    top
        Number of best trials to combine at most.
    method
        ``auto``: the simplest method within one standard error of the best nested score. ``all``: the same, and every
        method is scored. Otherwise the name of a method (docs/ensembles.md).
    max_members, max_mb
        Maximum number of networks (a trial has one per fold), and of megabytes of weights.
    distilled
        Train one network to predict as the ensemble does.
    device
        Where networks are run, ``cpu`` or ``cuda``; predictions differ by rounding. None: on the CPU, but a distilled
        network is trained on a GPU if there is one.
    so_far
        Use the trials that have ended while the sweep is still running. The held-out subjects are scored nevertheless,
        and a note says after how many trials.
    progress
        Called with the windows predicted so far, their number, and a text.

    Returns
    -------
    Ensemble
        Its ``verdict`` is the result in words, its ``render()`` adds the table of scores, members and notes.

    Raises
    ------
    UserError
        The sweep is still running, no trial can be used, a file is damaged, the method is unknown or cannot be used,
        the limits leave no trial, or the run's windows are not there.
    LeakError
        Predictions or windows do not follow the run's fold map.
    """
    from raypipe.ensembles import fit

    return fit.fit_ensemble(
        (run if isinstance(run, Run) else Run(run)).store,
        top=top,
        method=method,
        max_members=max_members,
        max_mb=max_mb,
        distilled=distilled,
        device=device,
        so_far=so_far,
        progress=progress,
    )


def export(
    run: Run | str | Path, out: str | Path, *, format: str | None = None, also: Run | str | Path | None = None
) -> Path:
    """Write the saved ensemble of a run as a bundle, as a graph that runs without raypipe, or as a submission.

    Parameters
    ----------
    run
        A run with an ensemble.
    out
        Folder of the bundle, which `load_ensemble` and `predict` read, or a file.
    format
        ``bundle``, ``onnx``, ``pt2`` (a program of `torch.export`) or ``submission``. None: by the ending of `out`,
        where a submission is a ``.zip``, and a bundle has none.
    also
        Second run of a submission, for the other half of the EEG Foundation Challenge.

    Returns
    -------
    pathlib.Path
        The folder or file that was written.

    Raises
    ------
    UserError
        The run has no ensemble, the format is unknown, both runs are of the same half, or the ensemble cannot be
        written in this format.
    """
    from raypipe.packaging import export as packaging

    return packaging.export(_where(run), out, format=format, also=None if also is None else _where(also))


def _where(run: Run | str | Path) -> str | Path:
    return run.where if isinstance(run, Run) else run


def __dir__() -> list[str]:
    return sorted(__all__)
