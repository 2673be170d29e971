"""Run one trial in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from raypipe.core.errors import InterruptedEpochError, LostCheckpointError, StorageError
from raypipe.storage.records import TrialResult
from raypipe.storage.run_store import RunStore
from raypipe.training.result import FoldEpoch, Reply
from raypipe.trial.evaluator import TrialEvaluator, finish_trial
from raypipe.trial.failures import Failure, classify_failure, keeps_windows, retry_or_fail

if TYPE_CHECKING:
    import torch

    from raypipe.data.window_store import WindowStore


def run_trial(
    run: RunStore,
    windows: WindowStore,
    number: int,
    *,
    interrupted: Callable[[], bool] = lambda: False,
    device: str | torch.device = "cpu",
    stem: str = "fourier",
    stacked: bool = False,
) -> TrialResult:
    """Run a whole trial from its checkpoints; see `FoldRunner` for the options.

    Raises
    ------
    InterruptedEpochError
        `interrupted` returned True.
    StorageError
        The run cannot be read or written. Other errors are recorded in the trial's result.
    """
    from raypipe.training.device import free_memory
    from raypipe.training.loader import WindowLoader
    from raypipe.trial.fold_runner import FoldRunner

    evaluator = TrialEvaluator(run, windows, number)

    def report(epoch: int, outcomes: Mapping[int, FoldEpoch]) -> Reply:
        evaluator.add_epoch(epoch, outcomes)
        return Reply(not evaluator.over, evaluator.best)

    own = windows.of(run.config(number).data.store)
    loader, folds = WindowLoader(own, device), range(run.folds.n_folds)

    def train(done: int) -> Failure | None:
        while True:
            loader.set_resident(keeps_windows(run, number))
            try:
                FoldRunner(run, loader, number, folds, stem=stem, stacked=stacked).train(done, report, interrupted)
                return None
            except (StorageError, InterruptedEpochError):
                raise
            except Exception as error:
                failure = retry_or_fail(run, number, classify_failure(error, resident=loader.resident), "process")
            if failure is not None:
                return failure
            free_memory()  # of the networks that did not fit, which the error held
            done = evaluator.done

    failure = None if evaluator.over else train(evaluator.done)
    try:
        return _finish(run, windows, number, failure)
    except LostCheckpointError:
        return _finish(run, windows, number, train(evaluator.done - 1))


def _finish(run: RunStore, windows: WindowStore, number: int, failure: Failure | None) -> TrialResult:
    if failure is not None:
        return finish_trial(run, windows, number, "failed", failure.reason, failure.kind, failure.trace)
    return finish_trial(run, windows, number, "complete", "trained to the end")
