"""Toy windows with a known answer and runs made from them; ways to interrupt trials and to invent their records."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks.toys import SPACE, TINY, ToyWindows, fold_trainer, make_run, tiny, write_store
from raypipe.core.config import TrialConfig
from raypipe.core.errors import InterruptedEpochError
from raypipe.data.window_store import WindowStore
from raypipe.storage.records import Epoch, TrialResult
from raypipe.storage.run_store import RunStore
from raypipe.training import checkpoint
from raypipe.training.stacked_trainer import StackedTrainer
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.evaluator import IDENTITY, checkpoint_identity
from raypipe.trial.local import run_trial

__all__ = [
    "SPACE",
    "TINY",
    "ToyWindows",
    "add_ended",
    "break_off",
    "fold_trainer",
    "make_run",
    "tiny",
    "write_checkpoints",
    "write_store",
]


def break_off(run: RunStore, windows: ToyWindows, number: int, epochs: int, **how: bool) -> None:
    """Train a trial in this process; interrupt it in the epoch after `epochs`, all of which are reported.

    The history cannot show when to interrupt: another thread writes it while epochs are trained.
    """

    def cut(run_epoch):
        def run_epoch_or_a_batch(self, interrupted=lambda: False):
            trainer = self.trainers[0] if isinstance(self, StackedTrainer) else self
            answers = itertools.chain([False], itertools.repeat(True))
            return run_epoch(self, (lambda: next(answers)) if trainer.epoch == epochs else interrupted)

        return run_epoch_or_a_batch

    with pytest.MonkeyPatch.context() as patch:
        for kind in (SupervisedTrainer, StackedTrainer):
            patch.setattr(kind, "run_epoch", cut(kind.run_epoch))
        with pytest.raises(InterruptedEpochError):
            run_trial(run, windows, number, **how)
    assert len(run.history(number)) == epochs


def write_checkpoints(run: RunStore, windows: ToyWindows | WindowStore, number: int, epoch: int) -> None:
    """Write checkpoints of an epoch of all folds, with invented predictions and weights."""
    for fold in range(run.folds.n_folds):
        _, validation = run.folds.split(windows.subjects, fold)
        predictions = torch.full((len(validation), 1), 100.0 * number + 10 * fold + epoch)
        state = {
            "predictions": predictions,
            "weights": {"w": predictions[:2]},
            "initial": "x",
            "target": [0.0, 1.0],
            IDENTITY: checkpoint_identity(run, number, run.config(number), fold, epoch),
        }
        run.write_checkpoint(number, fold, epoch, checkpoint.dumps(state))


def add_ended(
    run: RunStore,
    number: int,
    score: float | None,
    state: str = "complete",
    epochs: int = 4,
    config: TrialConfig | None = None,
    **params,
) -> None:
    """Write the records of a trial that was not trained: its configuration, history and result."""
    run.add_trial(number, config or tiny(**params))
    begun = run.started(number)
    history = [
        Epoch(epoch=e, passes=e, score=score, fold_scores=[score] * 3, losses=[1.0], seconds=10.0, finished=0.0)
        for e in range(1, epochs + 1)
    ]
    run.write_history(number, history)
    end = {"best_epoch": 1, "seconds": 10.0 * epochs, "reason": "toy", "finished": begun + 60.0 * (number + 1)}
    run.write_result(TrialResult(number=number, state=state, score=score, epochs=epochs, **end))
