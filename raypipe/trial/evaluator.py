"""Score a trial's epochs over all folds, keep the best one, decide when the trial ends, and write what it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import CheckpointError, LostCheckpointError, NonFiniteError
from raypipe.core.levels import ranking_score, rows_at_level, within_folds
from raypipe.core.metrics import NO_SKILL, constant_out_of_fold, score
from raypipe.core.outputs import as_columns
from raypipe.storage.checkpoint_file import RawTensor, read_raw
from raypipe.storage.out_of_fold import EpochPredictions, OutOfFold
from raypipe.storage.records import Epoch, Member, State, TrialResult, best_epoch, epoch_checksums
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import TrialLog
from raypipe.training.result import FoldEpoch

if TYPE_CHECKING:
    from raypipe.core.config import TrialConfig
    from raypipe.data.window_store import WindowStore


IDENTITY = "identity"
"""Key of a checkpoint's `checkpoint_identity`."""


class TrialEvaluator:
    """Score a trial's epochs over the predictions of all folds (`raypipe.core.levels.ranking_score`).

    The best epoch is the same for all folds. If it were chosen fold by fold, each model would be selected on the
    windows that its out-of-fold predictions are scored on.
    """

    def __init__(self, run: RunStore, windows: WindowStore, number: int) -> None:
        self.run, self.windows, self.number = run, windows, number
        self.config = run.config(number)
        self.history = run.history(number)
        self.validation = [run.folds.split(windows.subjects, fold)[1] for fold in range(run.folds.n_folds)]

    @property
    def done(self) -> int:
        """Return the number of epochs that all folds have reported."""
        return len(self.history)

    @property
    def best(self) -> int:
        """Return the best epoch so far; 0 before the first."""
        found = best_epoch(self.history, self.run.info.direction)
        return found.epoch if found else 0

    @property
    def over(self) -> bool:
        """Return whether the trial ends: all epochs are trained, or there was no better score for `patience` epochs.

        With ``early_stop=fold``, when all folds have stopped. With a cyclic learning rate, only at the end of a cycle.
        """
        if self.history and self.history[-1].over:
            return True
        if self.config.cycle_ends and self.done not in self.config.cycle_ends:
            return False
        return self.done >= self.config.epochs or self.done - self.best >= self.config.patience

    def add_epoch(self, epoch: int, outcomes: Mapping[int, FoldEpoch]) -> Epoch:
        """Score and record an epoch that all folds have finished, and store its predictions.

        Return the record, also if it was recorded before.

        Parameters
        ----------
        epoch
            Its number, from 1.
        outcomes
            The outcome of every fold.

        Raises
        ------
        NonFiniteError
            Predictions are not finite.
        RuntimeError
            An epoch or a fold is missing.
        """
        if epoch <= self.done:
            return self.history[epoch - 1]
        if epoch != self.done + 1 or sorted(outcomes) != list(range(len(self.validation))):
            raise RuntimeError(f"epoch {epoch} with folds {sorted(outcomes)} after epoch {self.done}")
        parts = [outcomes[fold] for fold in range(len(self.validation))]
        for fold, part in enumerate(parts):
            if not np.isfinite(part.predictions).all():
                raise NonFiniteError(f"fold {fold}, epoch {epoch}: the predictions are not finite")
        record = Epoch(
            epoch=epoch,
            passes=int(epoch * self.config.passes),
            score=self._score_over_folds(parts),
            fold_scores=[self._fold_score(fold, part.predictions) for fold, part in enumerate(parts)],
            losses=[part.loss for part in parts],
            seconds=sum(part.seconds for part in parts),
            by_fold=any(part.by_fold for part in parts),
            over=all(part.stopped for part in parts),
            finished=time.time(),
            predictions=self._write_predictions(epoch, parts),
        )
        self.history.append(record)
        self.run.write_history(self.number, self.history)
        return record

    def _score_over_folds(self, parts: Sequence[FoldEpoch]) -> float | None:
        folds = np.repeat(np.arange(len(parts)), [len(index) for index in self.validation])
        return self._score(np.concatenate(self.validation), np.concatenate([part.predictions for part in parts]), folds)

    def _write_predictions(self, epoch: int, parts: Sequence[FoldEpoch]) -> str:
        """Store the predictions of all folds, as `FoldMap.predicted_rows` orders them; return their checksum."""
        order, n_outputs = _row_order(self.run, self.validation), self.windows.n_outputs
        values = np.concatenate([part.predictions for part in parts])[order].astype(np.float32)
        variances = values[:, n_outputs] if values.shape[1] > n_outputs else None
        stored = EpochPredictions(values[:, :n_outputs], variances, self.run.info.kind == "regression")
        return self.run.write_epoch_predictions(self.number, epoch, stored)

    def _fold_score(self, fold: int, predictions: NDArray[np.float32]) -> float | None:
        return self._score(self.validation[fold], predictions, np.full(len(predictions), fold))

    def _score(
        self, index: NDArray[np.int64], predictions: NDArray[np.float32], folds: NDArray[np.int64]
    ) -> float | None:
        """Return the score of some windows; None where it is undefined, as of a fold with one class only."""
        windows, info = self.windows, self.run.info
        value = ranking_score(
            info.metric,
            info.level,
            windows.targets[index],
            predictions[:, : windows.n_outputs],
            windows.subjects[index],
            folds,
        )
        return float(value) if np.isfinite(value) else None


def _row_order(run: RunStore, validation: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the order in which windows of all folds, one fold after another, are `FoldMap.predicted_rows`."""
    per_repeat, windows = run.folds.folds_per_repeat, np.concatenate(validation)
    repeat = np.repeat(np.arange(len(validation)) // per_repeat, [len(index) for index in validation])
    return np.lexsort((windows, repeat))


def finish_trial(
    run: RunStore,
    windows: WindowStore,
    number: int,
    state: State,
    reason: str,
    failure: str | None = None,
    trace: str = "",
) -> TrialResult:
    """Write the out-of-fold predictions and weights of a trial's best epoch, and record its end.

    A trial that has a result is not changed. `trace`, the end of a traceback, goes into the trial's log.

    Raises
    ------
    LostCheckpointError
        A fold's checkpoint is missing or damaged; `FoldRunner.train` makes it again.
    """
    result = run.result(number)
    if result is None:
        result = _end_trial(run, windows, number, state, reason, failure)
        kind = f" ({result.failure})" if result.failure else ""
        text = f"{result.state}{kind} after epoch {result.epochs}: {result.reason}\n{trace}"
        TrialLog(run.folder, number, "end").write(text)
        run.write_result(result)
    for fold in range(run.folds.n_folds):
        run.drop_checkpoints(number, fold)
    return result


def _end_trial(
    run: RunStore, windows: WindowStore, number: int, state: State, reason: str, failure: str | None
) -> TrialResult:
    """Write what a trial leaves; return its result."""
    history = run.history(number)
    best = best_epoch(history, run.info.direction)
    files = run.record_checksums(number) | epoch_checksums(history)
    initial: list[str] = []
    ends: list[int] = []
    if best is not None and state != "failed":
        try:
            written, initial = _write_member(run, windows, Member(number), best.epoch, weights=state != "pruned")
            files |= written
        except (CheckpointError, FileNotFoundError) as error:
            raise LostCheckpointError(str(error)) from None
    if best is not None and state not in ("failed", "pruned"):
        ends = [epoch for epoch in run.config(number).cycle_ends if epoch <= len(history) and epoch != best.epoch]
        for epoch in ends:
            try:
                files |= _write_member(run, windows, Member(number, epoch), epoch, weights=True)[0]
            except (CheckpointError, FileNotFoundError) as error:
                raise LostCheckpointError(str(error)) from None
    return TrialResult(
        run=run.run_id,
        number=number,
        state=state,
        score=best.score if best else None,
        best_epoch=best.epoch if best else 0,
        epochs=len(history),
        seconds=sum(epoch.seconds for epoch in history),
        reason=reason,
        failure=failure,
        finished=time.time(),
        files=files,
        initial=initial,
        snapshots=ends,
    )


def _write_member(
    run: RunStore, windows: WindowStore, member: Member, epoch: int, *, weights: bool
) -> tuple[dict[str, str], list[str]]:
    """Write the predictions and weights in the folds' checkpoints of `epoch` as those of a member.

    Returns
    -------
    files
        Their entries in `TrialResult.files`.
    initial
        Identification of each fold's initial weights.
    """
    files: dict[str, str] = {}
    index, folds, predictions, initial = [], [], [], []
    config = run.config(member.trial)
    for fold in range(run.folds.n_folds):
        state = read_fold_checkpoint(run, member.trial, config, fold, epoch)
        initial.append(str(state["initial"]))
        validation = run.folds.split(windows.subjects, fold)[1]
        index.append(validation)
        folds.append(np.full(len(validation), fold))
        predictions.append(state["predictions"].numpy())
        if weights:
            tensors = {f"model.{name}": tensor for name, tensor in state["weights"].items()}
            for name, value in zip(("centre", "scale"), state["target"], strict=True):
                tensors[f"target.{name}"] = RawTensor.of(value)
            files |= run.write_weights(member.trial, fold, tensors, member.epoch)
    order = _row_order(run, index)
    values, n_outputs = np.concatenate(predictions)[order].astype(np.float32), windows.n_outputs
    oof = OutOfFold(
        np.concatenate(index)[order],
        np.concatenate(folds)[order],
        values[:, :n_outputs],
        values[:, n_outputs] if values.shape[1] > n_outputs else None,
    )
    return files | run.write_oof(member.trial, oof, member.epoch), initial


def constant_baseline(run: RunStore, windows: WindowStore) -> float:
    """Return the out-of-fold score of a constant prediction from the training targets, which trials have to beat.

    For AUC it is 0.5, for a correlation 0. With one person in each fold, training frequencies and means would score
    less, since folds are pooled.
    """
    info = run.info
    if info.metric in ("auc", "pearson"):
        return NO_SKILL[info.metric]
    index, folds = run.folds.predicted_rows(windows.subjects)
    targets = windows.targets[index]
    rows = rows_at_level(info.level, targets, windows.subjects[index], folds, as_columns(targets))
    n_classes = len(windows.classes)
    constant = constant_out_of_fold(info.kind, rows.targets, rows.folds, rows.subjects, n_classes, info.metric)
    return score(within_folds(info.metric, rows.folds), rows.targets, constant)


def read_fold_checkpoint(
    run: RunStore,
    number: int,
    config: TrialConfig,
    fold: int,
    epoch: int,
    unpack: Callable[[bytes, str], dict[str, Any]] = read_raw,
) -> dict[str, Any]:
    """Read a fold's checkpoint of `epoch`, of a trial with this configuration.

    Parameters
    ----------
    unpack
        Returns the state in a file of that name; `raypipe.training.checkpoint.loads` gives torch's tensors.

    Raises
    ------
    FileNotFoundError
        There is none.
    CheckpointError
        It is damaged, or of another trial, fold, epoch or configuration; the message names it.
    """
    name = f"{run.where}: trial {number}, fold {fold}, epoch {epoch}"
    state = unpack(run.read_checkpoint(number, fold, epoch), name)
    if state.get(IDENTITY) != checkpoint_identity(run, number, config, fold, epoch):
        raise CheckpointError(f"{name}: the checkpoint of another trial, fold or epoch")
    return state


def checkpoint_identity(run: RunStore, number: int, config: TrialConfig, fold: int, epoch: int) -> dict[str, Any]:
    """Return what a checkpoint belongs to, which is stored in it."""
    return {"run": run.run_id, "trial": number, "config": config.hash(), "fold": fold, "epoch": epoch}
