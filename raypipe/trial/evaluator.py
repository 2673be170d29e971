"""The referee of a trial: pools its folds' predictions, scores every epoch, keeps the best, says when it is over."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.errors import CheckpointError, NonFiniteError
from raypipe.core.metrics import constant_out_of_fold, score
from raypipe.storage.out_of_fold import OutOfFold
from raypipe.storage.records import Epoch, Member, State, TrialResult, best_epoch
from raypipe.storage.run_store import RunStore
from raypipe.storage.trial_log import TrialLog
from raypipe.training.result import FoldEpoch

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore


class TrialEvaluator:
    """Scores a trial's epochs over all folds together, so that a configuration is judged and not a lucky fold.

    The best epoch is one for all folds: chosen fold by fold, each model would be picked on the very windows that its
    out-of-fold predictions are scored on.
    """

    def __init__(self, run: RunStore, windows: WindowStore, number: int) -> None:
        self.run, self.windows, self.number = run, windows, number
        self.config = run.config(number)
        self.history = run.history(number)
        self.validation = [run.folds.split(windows.subjects, fold)[1] for fold in range(run.folds.n_folds)]

    @property
    def done(self) -> int:
        """Epochs that all folds have reported."""
        return len(self.history)

    @property
    def best(self) -> int:
        """Best epoch so far, 0 before the first."""
        found = best_epoch(self.history, self.run.info.direction)
        return found.epoch if found else 0

    @property
    def over(self) -> bool:
        """All epochs are trained, or `patience` of them went by without a better score (for each fold, by its own).

        Where the learning rate goes in cycles, patience ends with a cycle only.
        """
        if self.history and self.history[-1].over:
            return True
        if self.config.cycle_ends and self.done not in self.config.cycle_ends:
            return False
        return self.done >= self.config.epochs or self.done - self.best >= self.config.patience

    def take(self, epoch: int, outcomes: Mapping[int, FoldEpoch]) -> Epoch:
        """Record an epoch that all folds have finished; one that is known already is given back as it was.

        Raises
        ------
        NonFiniteError
            The score is no number.
        """
        if epoch <= self.done:
            return self.history[epoch - 1]
        if epoch != self.done + 1 or sorted(outcomes) != list(range(len(self.validation))):
            raise RuntimeError(f"epoch {epoch} with folds {sorted(outcomes)} after epoch {self.done}")
        targets = self.windows.targets
        parts = [outcomes[fold] for fold in range(len(self.validation))]
        pooled = score(
            self.run.info.metric,
            np.concatenate([targets[index] for index in self.validation]),
            # A checkpoint of a version without variances has no column of them.
            np.concatenate([part.predictions[:, : self.windows.n_outputs] for part in parts]),
        )
        if not np.isfinite(pooled):
            raise NonFiniteError(f"epoch {epoch}: the score over all folds is not finite")
        record = Epoch(
            epoch=epoch,
            passes=int(epoch * self.config.passes),
            score=pooled,
            fold_scores=[self._fold_score(fold, part.predictions) for fold, part in enumerate(parts)],
            losses=[part.loss for part in parts],
            seconds=sum(part.seconds for part in parts),
            by_fold=any(part.by_fold for part in parts),
            over=all(part.stopped for part in parts),
            finished=time.time(),
        )
        self.history.append(record)
        self.run.write_history(self.number, self.history)
        return record

    def _fold_score(self, fold: int, predictions: NDArray[np.float32]) -> float | None:
        targets = self.windows.targets[self.validation[fold]]
        value = score(self.run.info.metric, targets, predictions[:, : self.windows.n_outputs])
        return float(value) if np.isfinite(value) else None  # a fold with one class only has no AUC


def finish_trial(
    run: RunStore,
    windows: WindowStore,
    number: int,
    state: State,
    reason: str,
    failure: str | None = None,
    trace: str = "",
) -> TrialResult:
    """Gather what a trial leaves (out-of-fold predictions and weights of its best epoch) and record its end.

    Doing it again changes nothing: a trial whose result is there is given back as it is. `trace`, the end of a
    traceback, goes into the trial's log.
    """
    ended = run.result(number)
    if ended is None:
        history = run.history(number)
        best = best_epoch(history, run.info.direction)
        files = run.record_checksums(number)
        log = TrialLog(run.folder, number, "end")
        initial: list[str] = []
        snapshots: list[int] = []
        if best is not None and state != "failed":
            try:
                files |= _gather(run, windows, Member(number), best.epoch, initial, weights=state != "pruned")
            except (CheckpointError, FileNotFoundError) as error:
                state, reason, failure = "failed", f"its best epoch cannot be read: {error}", "error"
        if best is not None and state not in ("failed", "pruned"):
            for epoch in run.config(number).cycle_ends:
                if epoch > len(history) or epoch == best.epoch:
                    continue
                try:
                    files |= _gather(run, windows, Member(number, epoch), epoch, [], weights=True)
                    snapshots.append(epoch)
                except (CheckpointError, FileNotFoundError) as error:
                    log.write(f"the snapshot of epoch {epoch} cannot be read, and is left out: {error}")
        ended = TrialResult(
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
            snapshots=snapshots,
        )
        kind = f" ({failure})" if failure else ""
        log.write(f"{state}{kind} after epoch {len(history)}: {reason}\n{trace}")
        run.write_result(ended)
    for fold in range(run.folds.n_folds):
        run.drop_checkpoints(number, fold)
    return ended


def _gather(
    run: RunStore, windows: WindowStore, member: Member, epoch: int, initial: list[str], *, weights: bool
) -> dict[str, str]:
    """Write what the folds' checkpoints of `epoch` give as a member's; the files' entries in `TrialResult.files`."""
    import torch

    files: dict[str, str] = {}
    index, folds, predictions = [], [], []
    for fold in range(run.folds.n_folds):
        state = read_fold_checkpoint(run, member.trial, fold, epoch)
        initial.append(str(state.get("initial", "")))
        validation = run.folds.split(windows.subjects, fold)[1]
        index.append(validation)
        folds.append(np.full(len(validation), fold))
        predictions.append(state["predictions"].numpy())
        if weights:
            # Checkpoints of versions without `shrink` have no answer of their own.
            centre, scale = state.get("answer") or (state["centre"], state["scale"])
            extra = {"target.centre": centre, "target.scale": scale}
            tensors = {f"model.{name}": tensor.contiguous() for name, tensor in state["weights"].items()}
            tensors |= {name: torch.tensor(value, dtype=torch.float64) for name, value in extra.items()}
            files |= run.write_weights(member.trial, fold, tensors, member.epoch)
    order = np.argsort(np.concatenate(index), kind="stable")
    # A checkpoint of a version without variances has no column of them.
    tells = all(part.shape[1] > windows.n_outputs for part in predictions)
    answers = np.concatenate([part[:, : windows.n_outputs] for part in predictions])[order].astype(np.float32)
    oof = OutOfFold(
        np.concatenate(index)[order],
        np.concatenate(folds)[order],
        answers,
        np.concatenate([part[:, windows.n_outputs] for part in predictions])[order].astype(np.float32)
        if tells
        else None,
    )
    return files | run.write_oof(member.trial, oof, member.epoch)


def constant_baseline(run: RunStore, windows: WindowStore) -> float:
    """Score, out of fold, of one who knows the training targets and no EEG: what a trial has to beat.

    Of an AUC it is 0.5: pooled over folds, training frequencies score less, since each fold's come from the others.
    """
    if run.info.metric == "auc":
        return 0.5
    index = run.folds.search_index(windows.subjects)
    targets, folds = windows.targets[index], run.folds.folds(windows.subjects[index])
    constant = constant_out_of_fold(run.info.kind, targets, folds, len(windows.classes))
    return score(run.info.metric, targets, constant)


def read_fold_checkpoint(run: RunStore, number: int, fold: int, epoch: int) -> dict[str, Any]:
    """Read a fold's checkpoint of `epoch`.

    Raises
    ------
    FileNotFoundError
        There is none.
    CheckpointError
        It is damaged; the message names it.
    """
    from raypipe.training import checkpoint  # torch: the broker and the trial actors run without

    data = run.read_checkpoint(number, fold, epoch)
    return checkpoint.loads(data, f"{run.where}: trial {number}, fold {fold}, epoch {epoch}")
