"""A worker's share of a trial: some of its folds, epoch by epoch, a checkpoint after every epoch of every fold.

Nothing here knows of Ray. A trial in a plain process is one share that holds all folds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from raypipe.core.errors import CheckpointError, InterruptedEpochError
from raypipe.pretraining.fold_trainer import PretrainTrainer
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import TrialLog, start_text
from raypipe.training import checkpoint
from raypipe.training.loader import WindowLoader
from raypipe.training.result import FoldEpoch, Reply
from raypipe.training.stacked_trainer import StackedTrainer, stackable
from raypipe.training.trainer import FoldTrainer
from raypipe.trial.evaluator import read_fold_checkpoint
from raypipe.trial.failures import read_retry

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

log = logging.getLogger(__name__)


Trainer = FoldTrainer | PretrainTrainer
Report = Callable[[int, Mapping[int, FoldEpoch]], Reply]


class FoldRunner:
    """The folds of one trial that one worker trains.

    Parameters
    ----------
    run, windows
        The run and the windows it is trained on (a store of them, or a `WindowLoader`).
    number
        The trial.
    folds
        Which of its folds.
    device
        Where to compute; a `WindowLoader` knows.
    stem, stacked
        How: the stem's algorithm, and whether the folds are trained as one program. A trial that goes on must keep
        both to repeat its numbers to the bit.
    who
        Whose part of the trial's log this is.
    """

    def __init__(
        self,
        run: RunStore,
        windows: WindowStore | WindowLoader,
        number: int,
        folds: Sequence[int],
        device: str = "cpu",
        *,
        stem: str = "fourier",
        stacked: bool = False,
        who: str = "process",
    ) -> None:
        self.run, self.number, self.folds = run, number, list(folds)
        self.feed = windows if isinstance(windows, WindowLoader) else WindowLoader(windows, device)
        self.stem, self.stacked = stem, stacked
        retry = read_retry(run, number)
        self.micro_batch = retry.micro_batch if retry else None
        self.log = TrialLog(run.folder, number, who)
        self._ends = run.config(number).cycle_ends
        self._trainers: dict[int, Trainer] = {}
        self._stack: StackedTrainer | None = None
        self._found: dict[int, set[int]] | None = None

    def train(self, done: int, report: Report, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Train from the epoch after `done` until `report` says to stop or the epochs are used up.

        Epochs that were trained before a crash but not reported are read from their checkpoints, not trained again.
        Checkpoints are written, and then epochs reported, by another thread while the next epoch is trained.

        Parameters
        ----------
        done
            Epochs that have been reported by all folds.
        report
            Called with the epoch and what each fold of this share gave, once its checkpoints are whole.
        interrupted
            Asked before every batch; True raises `train.InterruptedEpochError`.
        """
        epochs = self.run.config(self.number).epochs
        self.log.write(start_text(self._work(), done))
        with ThreadPoolExecutor(1, thread_name_prefix="raypipe-report") as other:
            waiting: Future[bool] | None = None

            def over() -> bool:
                return waiting is not None and waiting.done() and not waiting.result()

            for epoch in range(done + 1, epochs + 1):
                try:
                    outcomes, states = self._epoch(epoch, lambda: over() or interrupted())
                except InterruptedEpochError:
                    if over():
                        return
                    raise
                if waiting is not None and not waiting.result():
                    return
                waiting = other.submit(self._hand_in, epoch, outcomes, states, report)
            if waiting is not None:
                waiting.result()

    def _work(self) -> str:
        way = (
            f"micro-batches of {self.micro_batch}" if self.micro_batch else "stacked" if self.stacked else "one by one"
        )
        return f"folds {', '.join(map(str, self.folds))} on {self.feed.device.type}, {self.stem} stem, {way}"

    def _hand_in(
        self, epoch: int, outcomes: dict[int, FoldEpoch], states: dict[int, dict[str, Any]], report: Report
    ) -> bool:
        """Write an epoch's checkpoints, report it, and drop older ones; whether to go on."""
        for fold, state in states.items():
            self.run.write_checkpoint(self.number, fold, epoch, checkpoint.dumps(state))
        reply = report(epoch, outcomes)
        if reply.go:  # else the trial is being finished, or is another worker's by now: its checkpoints are not ours
            for fold in self.folds:
                # Later ones were left by a crash: they are read, and not written again.
                self.run.drop_checkpoints(self.number, fold, keep=(epoch - 1, reply.best, *self._ends), before=epoch)
        return reply.go

    def _epoch(
        self, epoch: int, interrupted: Callable[[], bool]
    ) -> tuple[dict[int, FoldEpoch], dict[int, dict[str, Any]]]:
        """What every fold gives at `epoch`, and the states that are still to be written."""
        if not self._trainers:
            self._trainers = {fold: self._trainer(fold) for fold in self.folds}
        if self.stacked and stackable(cast(list[FoldTrainer], list(self._trainers.values()))):
            return self._together(self.folds, epoch, interrupted)
        outcomes: dict[int, FoldEpoch] = {}
        states: dict[int, dict[str, Any]] = {}
        for fold in self.folds:
            one = self._together([fold], epoch, interrupted)
            outcomes |= one[0]
            states |= one[1]
        return outcomes, states

    def _together(
        self, folds: Sequence[int], epoch: int, interrupted: Callable[[], bool]
    ) -> tuple[dict[int, FoldEpoch], dict[int, dict[str, Any]]]:
        """Bring folds to `epoch`: from their checkpoints if all have one, else training all of them on together."""
        trainers = [self._trainers[fold] for fold in folds]
        if any(trainer.epoch != epoch - 1 for trainer in trainers) or epoch in self._known(folds):
            found = [self._read(fold, epoch) for fold in folds]
            states = [state for state in found if state is not None]
            if len(states) == len(folds):
                for trainer, state in zip(trainers, states, strict=True):
                    trainer.load_state_dict(state)
                return {f: as_fold_epoch(s) for f, s in zip(folds, states, strict=True)}, {}
            self._rewind(folds, epoch - 1)
            trainers = [self._trainers[fold] for fold in folds]
        while trainers[0].epoch < epoch:
            outcomes = self._run_epoch(trainers, interrupted)
        return dict(zip(folds, outcomes, strict=True)), {
            fold: _state(trainer, outcome) for fold, trainer, outcome in zip(folds, trainers, outcomes, strict=True)
        }

    def _run_epoch(self, trainers: list[Trainer], interrupted: Callable[[], bool]) -> list[FoldEpoch]:
        going = cast(list[FoldTrainer], [trainer for trainer in trainers if not trainer.stopped])
        if not stackable(going):
            return [trainer.run_epoch(interrupted) for trainer in trainers]
        if self._stack is None or self._stack.trainers != going:
            self._stack = StackedTrainer(going)
        given = dict(zip(going, self._stack.run_epoch(interrupted), strict=True))
        return [given[t] if t in given else t.run_epoch(interrupted) for t in trainers]

    def _trainer(self, fold: int) -> Trainer:
        train, validation = self.run.folds.split(self.feed.windows.subjects, fold)
        config = self.run.config(self.number)
        if config.pretrain.name != "none":
            return PretrainTrainer(config, self.feed, train, validation, fold=fold)
        return FoldTrainer(
            config,
            self.feed,
            train,
            validation,
            fold=fold,
            stem=self.stem,
            micro_batch=self.micro_batch,
            encoder=self.run.encoder(fold) if config.init.name != "none" else None,
        )

    def _known(self, folds: Sequence[int]) -> set[int]:
        """Epochs that checkpoints lie there of; looked up once, at the first epoch after a start."""
        if self._found is None:
            self._found = {fold: set(self.run.checkpoints(self.number, fold)) for fold in self.folds}
        return set().union(*(self._found[fold] for fold in folds))

    def _rewind(self, folds: Sequence[int], latest: int) -> None:
        """Go back to the newest epoch up to `latest` of which all folds have a whole checkpoint, or to the start."""
        common = set.intersection(*(set(self.run.checkpoints(self.number, fold)) for fold in folds))
        for epoch in sorted((epoch for epoch in common if epoch <= latest), reverse=True):
            found = [self._read(fold, epoch) for fold in folds]
            states = [state for state in found if state is not None]
            if len(states) == len(folds):
                for fold, state in zip(folds, states, strict=True):
                    self._trainers[fold].load_state_dict(state)
                self.log.write(f"folds {', '.join(map(str, folds))} taken up from their checkpoints of epoch {epoch}")
                return
        if any(self._trainers[fold].epoch for fold in folds):
            self._trainers |= {fold: self._trainer(fold) for fold in folds}

    def _read(self, fold: int, epoch: int) -> dict[str, Any] | None:
        try:
            return read_fold_checkpoint(self.run, self.number, fold, epoch)
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            log.warning("%s: using the one before it", error)
            self.log.write(f"{error}: using the one before it")
            return None


def _state(trainer: Trainer, outcome: FoldEpoch) -> dict[str, Any]:
    """What a checkpoint holds; weights that are the model's own are the same tensors, which are written once."""
    state = trainer.state_dict()
    return state | {
        "weights": trainer.weights() if trainer.chooses_weights else state["model"],
        "loss": outcome.loss,
        "predictions": torch.from_numpy(outcome.predictions),
        "seconds": outcome.seconds,
        "by_fold": outcome.by_fold,
        "stopped": outcome.stopped,
    }


def as_fold_epoch(state: Mapping[str, Any]) -> FoldEpoch:
    """What the epoch of a checkpoint gave."""
    predictions = np.asarray(state["predictions"].numpy())
    return FoldEpoch(state["loss"], predictions, state["seconds"], state["by_fold"], state["stopped"])
