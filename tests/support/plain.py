"""A sweep without Ray. Every other sweep must give its numbers, whichever processes are killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from raypipe import CrossValidation, Run, cross_validate
from raypipe.core.options import SweepOptions
from raypipe.core.search_space import load_space
from raypipe.data.window_store import WindowStore
from raypipe.search.own_metrics import find_own_metric
from raypipe.search.run_setup import open_run
from raypipe.search.study import StudyQueue
from raypipe.storage.journal import open_journal
from raypipe.storage.records import write_options
from raypipe.storage.run_store import RunStore
from raypipe.trial.local import run_trial


def plain_sweep(
    space: Path, data: Path | str, where: Path, *, trials: int, folds: int = 4, metric: str | None = None
) -> Run:
    """Run a sweep in this process, trial by trial and fold by fold, each on one core."""
    windows = WindowStore(data)
    options = SweepOptions(trials=trials, folds=folds, metric=metric)
    run = open_run(load_space(space), windows, str(where), find_own_metric(options))
    _train_trials(run, windows, trials)
    return Run(run)


def plain_cross_validation(space: Path, data: Path, where: Path, **options: Any) -> CrossValidation:
    """Cross-validate a search in this process; see `raypipe.cross_validate`."""
    with parts_without_ray():
        return cross_validate(space, data, where, **options)


@contextmanager
def parts_without_ray() -> Iterator[None]:
    """Search the parts of outer cross-validations in this process."""

    def drive(run: RunStore, windows: WindowStore, options: SweepOptions, *_: Any, **__: Any) -> None:
        write_options(run.folder, options.model_dump(mode="json"), run.run_id)
        _train_trials(run, windows, options.trials)

    cluster = nullcontext(SimpleNamespace(start=lambda: None))
    with (
        mock.patch("raypipe.search.outer.drive", drive),
        mock.patch("raypipe.search.outer.open_cluster", lambda *_: cluster),
    ):
        yield


def _train_trials(run: RunStore, windows: WindowStore, trials: int) -> None:
    queue = StudyQueue(run, windows, open_journal(run), trials=trials)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: sums are rounded by the number of threads
    try:
        while (number := queue.next()) is not None:
            run_trial(run, windows, number)
            queue.close(number, "complete", "trained to the end")
    finally:
        torch.set_num_threads(threads)
