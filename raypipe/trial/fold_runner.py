"""Train a subset of a trial's folds on one worker, checkpointing each fold after every epoch.

A trial in a plain process is one runner with all folds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from raypipe.core.errors import CheckpointError, InterruptedEpochError
from raypipe.pretraining.fold_trainer import PretrainTrainer
from raypipe.storage.records import best_epoch
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import TrialLog, start_text
from raypipe.training import checkpoint
from raypipe.training.closed_form import ClosedFormTrainer
from raypipe.training.features import SharedFeatures
from raypipe.training.fold_trainer import FoldTrainer, Interrupted, never
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.result import FoldEpoch, Reply
from raypipe.training.stacked_trainer import StackedTrainer, stackable
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.evaluator import IDENTITY, checkpoint_identity, read_fold_checkpoint
from raypipe.trial.failures import read_retry

log = logging.getLogger(__name__)

Report = Callable[[int, Mapping[int, FoldEpoch]], Reply]
Outcomes = dict[int, FoldEpoch]
States = dict[int, dict[str, Any]]


class FoldRunner:
    """Train the folds of one trial that belong to one worker.

    Parameters
    ----------
    run, loader
        The run, and the windows that it is trained on.
    number
        The trial.
    folds
        Numbers of its folds.
    stem, stacked
        The stem's algorithm, and whether the folds are trained as one program. A trial that continues needs the same
        values to get the same numbers, bit for bit.
    writer
        Name of this worker in the trial's log.
    """

    def __init__(
        self,
        run: RunStore,
        loader: WindowLoader,
        number: int,
        folds: Sequence[int],
        *,
        stem: str = "fourier",
        stacked: bool = False,
        writer: str = "process",
    ) -> None:
        self.run, self.loader, self.number, self.folds = run, loader, number, list(folds)
        self.stem, self.stacked = stem, stacked
        self.config = run.config(number)
        retry = read_retry(run, number)
        self.micro_batch = retry.micro_batch if retry else None
        self.log = TrialLog(run.folder, number, writer)
        self._trainers: dict[int, FoldTrainer] = {}
        self._stack: StackedTrainer | None = None
        self._features: SharedFeatures | None = None
        self._stored: dict[int, set[int]] | None = None

    def train(self, done: int, report: Report, interrupted: Interrupted = never) -> None:
        """Train from the epoch after `done` until `report` ends it or all epochs are trained.

        Epochs that were trained but not reported before a crash are read from their checkpoints, not trained again.
        A fold that has lost a checkpoint which the trial's end needs is trained again to that epoch first.
        Another thread writes checkpoints and then reports their epoch while the next epoch is trained.

        Parameters
        ----------
        done
            Number of epochs that all folds have reported.
        report
            Called with an epoch and the outcome of each fold, after its checkpoints were written.
        interrupted
            Called before every batch; True ends the epoch.

        Raises
        ------
        InterruptedEpochError
            `interrupted` returned True.
        """
        self.log.write(start_text(self._description(), done))
        self._restore_lost(interrupted)
        with ThreadPoolExecutor(1, thread_name_prefix="raypipe-report") as reporter:
            reported: Future[bool] | None = None

            def ended() -> bool:
                return reported is not None and reported.done() and not reported.result()

            for epoch in range(done + 1, self.config.epochs + 1):
                try:
                    outcomes, states = self._epoch(epoch, lambda: ended() or interrupted())
                except InterruptedEpochError:
                    if ended():
                        return
                    raise
                if reported is not None and not reported.result():
                    return
                reported = reporter.submit(self._report_epoch, epoch, outcomes, states, report)
            if reported is not None:
                reported.result()

    def _description(self) -> str:
        if self.config.model.closed_form:
            return f"folds {_listed(self.folds)} on cpu, in closed form"
        way = "stacked" if self.stacked else "one by one"
        if self.micro_batch:
            way = f"micro-batches of {self.micro_batch}"
        place = self.loader.device.type
        if place != "cpu":
            place += " (windows kept there)" if self.loader.resident else " (windows copied batch by batch)"
        return f"folds {_listed(self.folds)} on {place}, {self.stem} stem, {way}"

    def _report_epoch(self, epoch: int, outcomes: Outcomes, states: States, report: Report) -> bool:
        """Write an epoch's checkpoints, report it, and drop older ones; return whether training continues."""
        for fold, state in states.items():
            self._write(fold, epoch, state)
        reply = report(epoch, outcomes)
        if reply.continues:  # otherwise the trial has ended or has moved to another worker, and so have its checkpoints
            keep = (epoch - 1, reply.best, *self.config.cycle_ends)
            for fold in self.folds:
                # Checkpoints of later epochs are from before a crash: they are read, and not written again.
                self.run.drop_checkpoints(self.number, fold, keep=keep, before=epoch)
        return reply.continues

    def _epoch(self, epoch: int, interrupted: Interrupted) -> tuple[Outcomes, States]:
        """Bring every fold to `epoch`; return the outcomes, and the states that are not written yet."""
        if not self._trainers:
            self._trainers = {fold: self._trainer(fold) for fold in self.folds}
        together = self.stacked and stackable(list(self._trainers.values()))
        outcomes: Outcomes = {}
        states: States = {}
        for folds in [self.folds] if together else [[fold] for fold in self.folds]:
            some_outcomes, some_states = self._advance(folds, epoch, interrupted)
            outcomes |= some_outcomes
            states |= some_states
        return outcomes, states

    def _advance(self, folds: Sequence[int], epoch: int, interrupted: Interrupted) -> tuple[Outcomes, States]:
        """Bring folds to `epoch`: load their checkpoints of it if all have one, else train them together."""
        behind = any(self._trainers[fold].epoch != epoch - 1 for fold in folds)
        if behind or epoch in self._stored_epochs(folds):
            stored = self._read_all(folds, epoch)
            if stored is not None:
                self._load(stored)
                return {fold: stored_outcome(state) for fold, state in stored.items()}, {}
            self._rewind(folds, epoch - 1)
        trainers = [self._trainers[fold] for fold in folds]
        while trainers[0].epoch < epoch:
            outcomes = self._run_epoch(trainers, interrupted)
        states = {t.fold: checkpoint_of(t, outcome) for t, outcome in zip(trainers, outcomes, strict=True)}
        return dict(zip(folds, outcomes, strict=True)), states

    def _run_epoch(self, trainers: list[FoldTrainer], interrupted: Interrupted) -> list[FoldEpoch]:
        """Train one epoch; folds that have not stopped are stacked where that is possible."""
        active = [trainer for trainer in trainers if not trainer.stopped]
        if not stackable(active):
            outcomes = [trainer.run_epoch(interrupted) for trainer in trainers]
            for trainer in trainers:
                if isinstance(trainer, ClosedFormTrainer):
                    self.log.write(trainer.note)
            return outcomes
        if self._stack is None or self._stack.trainers != active:
            self._stack = StackedTrainer(active)
        stacked = dict(zip((trainer.fold for trainer in active), self._stack.run_epoch(interrupted), strict=True))
        return [stacked[t.fold] if t.fold in stacked else t.run_epoch(interrupted) for t in trainers]

    def _trainer(self, fold: int) -> FoldTrainer:
        train, validation = self.run.folds.split(self.loader.windows.subjects, fold)
        subjects = self.loader.windows.subjects
        groups_N = self.run.folds.groups(subjects)
        if self.config.pretrain.name != "none":
            micro_batch = self.micro_batch
            return PretrainTrainer(
                self.config, self.loader, train, validation, fold=fold, groups_N=groups_N, micro_batch=micro_batch
            )
        data = FoldData(self.config, self.loader, train, validation, fold=fold, groups_N=groups_N)
        if self.config.model.closed_form:
            if self._features is None:
                self._features = SharedFeatures(self.run.folds.search_index(subjects))
            return ClosedFormTrainer(self.config, data, groups_N, self._features)
        return SupervisedTrainer(
            self.config,
            data,
            stem=self.stem,
            micro_batch=self.micro_batch,
            metric=self.run.info.metric,
            level=self.run.info.level,
            encoder=self.run.encoder(fold) if self.config.init.name != "none" else None,
        )

    # Checkpoints

    def _write(self, fold: int, epoch: int, state: dict[str, Any]) -> None:
        identity = checkpoint_identity(self.run, self.number, self.config, fold, epoch)
        self.run.write_checkpoint(self.number, fold, epoch, checkpoint.dumps(state | {IDENTITY: identity}))

    def _restore_lost(self, interrupted: Interrupted) -> None:
        """Train folds again whose checkpoints of the best epoch, or of the end of a cycle, are missing or damaged."""
        history = self.run.history(self.number)
        best = best_epoch(history, self.run.info.direction)
        needed = {best.epoch, *(end for end in self.config.cycle_ends if end <= len(history))} if best else set()
        for epoch in sorted(needed):
            lost = [fold for fold in self.folds if self._read(fold, epoch) is None]
            if lost:
                self.log.write(f"folds {_listed(lost)} lost their checkpoints of epoch {epoch}: trained again")
                for fold, state in self._epoch(epoch, interrupted)[1].items():
                    self._write(fold, epoch, state)
                self._stored = None

    def _stored_epochs(self, folds: Sequence[int]) -> set[int]:
        """Return the epochs with checkpoints in the store, which is read once, at the first epoch after a start."""
        if self._stored is None:
            self._stored = {fold: set(self.run.checkpoints(self.number, fold)) for fold in self.folds}
        return set().union(*(self._stored[fold] for fold in folds))

    def _rewind(self, folds: Sequence[int], latest: int) -> None:
        """Return to the newest epoch up to `latest` of which all folds have a whole checkpoint, or to the start."""
        common = set.intersection(*(set(self.run.checkpoints(self.number, fold)) for fold in folds))
        for epoch in sorted(common, reverse=True):
            if epoch <= latest and (stored := self._read_all(folds, epoch)) is not None:
                self._load(stored)
                self.log.write(f"folds {_listed(folds)} restored from their checkpoints of epoch {epoch}")
                return
        if any(self._trainers[fold].epoch for fold in folds):
            self._trainers |= {fold: self._trainer(fold) for fold in folds}

    def _load(self, stored: States) -> None:
        for fold, state in stored.items():
            self._trainers[fold].load_state_dict(state)

    def _read_all(self, folds: Sequence[int], epoch: int) -> States | None:
        """Read the folds' checkpoints of an epoch; return None if one is missing or damaged."""
        states = {fold: self._read(fold, epoch) for fold in folds}
        whole = {fold: state for fold, state in states.items() if state is not None}
        return whole if len(whole) == len(states) else None

    def _read(self, fold: int, epoch: int) -> dict[str, Any] | None:
        try:
            return read_fold_checkpoint(self.run, self.number, self.config, fold, epoch, checkpoint.loads)
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            log.warning("%s: using the one before it", error)
            self.log.write(f"{error}: using the one before it")
            return None


def checkpoint_of(trainer: FoldTrainer, outcome: FoldEpoch) -> dict[str, Any]:
    """Return the content of a checkpoint: the trainer's state, and the outcome of its epoch."""
    return trainer.state_dict() | {
        "loss": outcome.loss,
        "predictions": torch.from_numpy(outcome.predictions),
        "seconds": outcome.seconds,
        "by_fold": outcome.by_fold,
        "stopped": outcome.stopped,
    }


def stored_outcome(state: Mapping[str, Any]) -> FoldEpoch:
    """Return the outcome of a checkpoint's epoch."""
    predictions = np.asarray(state["predictions"].numpy())
    return FoldEpoch(state["loss"], predictions, state["seconds"], state["by_fold"], state["stopped"])


def _listed(folds: Sequence[int]) -> str:
    return ", ".join(map(str, folds))
