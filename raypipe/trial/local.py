"""Run one trial in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from raypipe.core.errors import InterruptedEpochError, StorageError
from raypipe.storage.run_store import RunStore, TrialResult
from raypipe.training.result import FoldEpoch, Reply
from raypipe.trial.evaluator import Referee, finish_trial
from raypipe.trial.failures import Failure, describe, second_try

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
    """Run a whole trial in this process, without Ray, from wherever its checkpoints stand; see `Share`."""
    from raypipe.trial.fold_runner import Share

    referee = Referee(run, windows, number)
    failure: Failure | None = None

    def train() -> None:
        share = Share(run, windows, number, range(run.folds.n_folds), device, stem=stem, stacked=stacked)
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
            failure = second_try(run, number, describe(error), "process")
    if failure is not None:
        return finish_trial(run, windows, number, "failed", failure.reason, failure.kind, failure.trace)
    return finish_trial(run, windows, number, "complete", "trained to the end")
