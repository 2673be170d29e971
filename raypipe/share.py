"""A worker's share of a trial: some of its folds, epoch by epoch, a checkpoint after every epoch of every fold.

Nothing here knows of Ray. A trial in a plain process is one share that holds all folds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raypipe import checkpoint
from raypipe.errors import CheckpointError
from raypipe.messages import FoldEpoch, Reply
from raypipe.store import RunStore
from raypipe.train import FoldTrainer

if TYPE_CHECKING:
    from raypipe.windows import WindowStore

log = logging.getLogger(__name__)


Report = Callable[[int, Mapping[int, FoldEpoch]], Reply]


@dataclass
class Share:
    """The folds of one trial that one worker trains.

    Parameters
    ----------
    run, windows
        The run and the windows it is trained on.
    number
        The trial.
    folds
        Which of its folds.
    device
        Where to compute.
    """

    run: RunStore
    windows: WindowStore
    number: int
    folds: Sequence[int]
    device: str = "cpu"
    _trainers: dict[int, FoldTrainer] = field(default_factory=dict, repr=False)

    def train(self, done: int, report: Report, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Train from the epoch after `done` until `report` says to stop or the epochs are used up.

        Epochs that were trained before a crash but not reported are read from their checkpoints, not trained again.

        Parameters
        ----------
        done
            Epochs that have been reported by all folds.
        report
            Called with the epoch and what each fold of this share gave.
        interrupted
            Asked before every batch; True raises `train.InterruptedEpochError`.
        """
        epochs = self.run.config(self.number).epochs
        for epoch in range(done + 1, epochs + 1):
            reply = report(epoch, {fold: self._epoch(fold, epoch, interrupted) for fold in self.folds})
            if not reply.go:
                return  # the trial is being finished, or is another worker's by now: its checkpoints are not ours
            for fold in self.folds:
                self.run.drop_checkpoints(self.number, fold, keep=(epoch, epoch - 1, reply.best))

    def _epoch(self, fold: int, epoch: int, interrupted: Callable[[], bool]) -> FoldEpoch:
        trainer = self._trainers.get(fold)
        if trainer is None:
            trainer = self._trainers[fold] = self._trainer(fold)
        found = self._read(fold, epoch)
        if found is not None:
            trainer.load_state_dict(found)
            return as_fold_epoch(found)
        if trainer.epoch != epoch - 1:
            self._rewind(trainer, epoch - 1)
        while trainer.epoch < epoch:
            outcome = trainer.run_epoch(interrupted)
        state = trainer.state_dict() | {
            "weights": trainer.weights(),
            "loss": outcome.loss,
            "predictions": torch.from_numpy(outcome.predictions),
            "seconds": outcome.seconds,
        }
        self.run.write_checkpoint(self.number, fold, epoch, checkpoint.dumps(state))
        return outcome

    def _trainer(self, fold: int) -> FoldTrainer:
        train, validation = self.run.folds.split(self.windows.subjects, fold)
        return FoldTrainer(self.run.config(self.number), self.windows, train, validation, fold=fold, device=self.device)

    def _rewind(self, trainer: FoldTrainer, latest: int) -> None:
        """Load the newest whole checkpoint up to epoch `latest`, if there is one."""
        for epoch in reversed(self.run.checkpoints(self.number, trainer.fold)):
            if epoch <= latest and (state := self._read(trainer.fold, epoch)) is not None:
                trainer.load_state_dict(state)
                return

    def _read(self, fold: int, epoch: int) -> dict[str, Any] | None:
        try:
            return read_fold(self.run, self.number, fold, epoch)
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            log.warning("%s: using the one before it", error)
            return None


def read_fold(run: RunStore, number: int, fold: int, epoch: int) -> dict[str, Any]:
    """Read a fold's checkpoint of `epoch`.

    Raises
    ------
    FileNotFoundError
        There is none.
    CheckpointError
        It is damaged; the message names it.
    """
    data = run.read_checkpoint(number, fold, epoch)
    return checkpoint.loads(data, f"{run.where}: trial {number}, fold {fold}, epoch {epoch}")


def as_fold_epoch(state: Mapping[str, Any]) -> FoldEpoch:
    """What the epoch of a checkpoint gave."""
    return FoldEpoch(state["loss"], np.asarray(state["predictions"].numpy()), state["seconds"])
