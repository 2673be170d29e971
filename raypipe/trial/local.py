"""Run one trial in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from raypipe.core.errors import InterruptedEpochError, StorageError
from raypipe.storage.records import TrialResult
from raypipe.storage.run_store import RunStore
from raypipe.training.result import FoldEpoch, Reply
from raypipe.trial.evaluator import TrialEvaluator, finish_trial
from raypipe.trial.failures import Failure, classify_failure, retry_or_fail

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore


def run_trial(
    run: RunStore,
    windows: WindowStore,
    number: int,
    *,
    interrupted: Callable[[], bool] = lambda: False,
    device: str = "cpu",
    stem: str = "fourier",
    stacked: bool = False,
) -> TrialResult:
    """Run a whole trial in this process, without Ray, from wherever its checkpoints stand; see `FoldRunner`."""
    from raypipe.trial.fold_runner import FoldRunner

    referee = TrialEvaluator(run, windows, number)
    failure: Failure | None = None

    def train() -> None:
        share = FoldRunner(run, windows, number, range(run.folds.n_folds), device, stem=stem, stacked=stacked)
        share.train(referee.done, report, interrupted)

    def report(epoch: int, outcomes: Mapping[int, FoldEpoch]) -> Reply:
        referee.take(epoch, outcomes)
        return Reply(not referee.over, referee.best)

    while failure is None and not referee.over:
        try:
            train()
            break
        except (StorageError, InterruptedEpochError):
            raise
        except Exception as error:
            failure = retry_or_fail(run, number, classify_failure(error), "process")
    if failure is not None:
        return finish_trial(run, windows, number, "failed", failure.reason, failure.kind, failure.trace)
    return finish_trial(run, windows, number, "complete", "trained to the end")
