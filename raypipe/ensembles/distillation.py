"""Distillation (Hinton et al. 2015, arXiv:1503.02531): one network trained to predict what an ensemble predicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raypipe.core.config import LossConfig, OwnLossConfig
from raypipe.core.errors import NonFiniteError, UserError
from raypipe.core.folds import Index
from raypipe.core.progress import Progress
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.members import MergedNetworks, member_windows
from raypipe.ensembles.oof import Floats
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore
from raypipe.training.device import default_training_device
from raypipe.training.loader import FoldData, WindowLoader
from raypipe.training.trainer import SupervisedTrainer
from raypipe.trial.failures import keeps_windows, read_retry

LABEL_SHARE = 0.5
"""Share of the labels in the student's targets; the rest is what the ensemble predicts."""


class _StudentData(FoldData):
    """Data whose targets are a mean of labels and an ensemble's predictions, on the crops that it predicted."""

    predictions_NO: Floats  # noqa: N815 - a row for each window of the store; only those of training windows are read

    def offsets(self, rng: np.random.Generator, index: Index) -> Index | None:
        """Return None: the ensemble predicted the crops that windows are evaluated with."""
        return None

    def targets(self, index: Index, offsets: Index | None) -> Tensor:
        """Return the mixed targets of windows, on the host."""
        labels = super().targets(index, None)
        predicted_BO = torch.as_tensor(self.predictions_NO[index], dtype=torch.float32)
        if self.n_classes:
            one_hot_BK = torch.nn.functional.one_hot(labels, self.n_classes).to(predicted_BO)
            return torch.lerp(predicted_BO, one_hot_BK, LABEL_SHARE)
        # The ensemble's predictions are shrunk already, and the student's output will be: undo the student's shrinkage.
        scale = self.scale if self.config.shrink == 1 else self.out_scale
        predicted = predicted_BO[:, 0] if labels.ndim == 1 else predicted_BO
        standardised = torch.as_tensor((predicted.numpy() - self.out_centre) / scale, dtype=torch.float32)
        return torch.lerp(standardised, labels, LABEL_SHARE)


def choose_student(run: RunStore, members: Sequence[Member]) -> Member:
    """Return the member whose configuration a student has: the best one that was trained by gradients.

    Parameters
    ----------
    run, members
        The run, and its members from the best on.

    Raises
    ------
    UserError
        There is none, or it started from a pretrained encoder: its networks have learned from more than the student
        would.
    """
    trained = [member for member in members if not run.config(member.trial).model.closed_form]
    if not trained:
        raise UserError("--distill: no member is a network that can be trained; all were fitted in closed form")
    like = trained[0]
    if run.config(like.trial).init.name != "none":
        raise UserError(
            f"--distill: trial {like.trial}, whose network the student would have, started from a pretrained encoder; "
            "take --method soup for one network per fold"
        )
    return like


def distill(
    run: RunStore,
    windows: WindowStore,
    like: Member,
    index: Index,
    predictions_NO: Floats,
    progress: Progress | None = None,
    *,
    device: torch.device | None = None,
) -> MergedNetworks:
    """Train one network on all search subjects, with the configuration of a trial, up to the trial's best epoch.

    If each fold of the trial chose its own epoch, it is the last that one of them trained. Training happens in this
    process.

    Parameters
    ----------
    run, windows
        The run and its windows.
    like
        Member whose configuration the student has, without mixup, and without a loss of the user's, which need not suit
        what an ensemble predicts; the student starts at random.
    index
        (N,) windows that it is trained on.
    predictions_NO
        (N, outputs) predictions of the ensemble for these windows. They should come from an ensemble that was not
        fitted on the windows: otherwise the student learns what the ensemble has memorized.
    progress
        Called with epochs done, epochs in all, and a text.
    device
        Where it is trained; None for a GPU if there is one.

    Returns
    -------
    MergedNetworks
        With the student as its only network.

    Raises
    ------
    UserError
        See `choose_student`; or the student's loss is not finite.
    """
    choose_student(run, [like])
    config, result, retry = run.config(like.trial), run.result(like.trial), read_retry(run, like.trial)
    loss = LossConfig() if isinstance(config.loss, OwnLossConfig) else config.loss
    config = config.model_copy(update={"mixup": type(config.mixup)(), "early_stop": "trial", "loss": loss})
    resident = None if keeps_windows(run, like.trial) else False
    windows = member_windows(run, windows, like)
    loader = WindowLoader(windows, device or default_training_device(), resident=resident)
    data = _StudentData(config, loader, index, index[:0], fold=run.folds.n_folds)
    data.predictions_NO = np.zeros((len(windows), predictions_NO.shape[1]))
    data.predictions_NO[index] = predictions_NO
    student = SupervisedTrainer(config, data, micro_batch=retry.micro_batch if retry else None)
    epochs = result.best_epoch if result is not None else config.epochs
    for epoch in range(1, epochs + 1):
        _train_epoch(student, like.trial)
        student.epoch = epoch
        if progress:
            progress(epoch, epochs, "epochs of the student")
    tensors = {f"model.{name}": tensor.cpu().contiguous() for name, tensor in student.weights().items()}
    for name, value in (("centre", data.out_centre), ("scale", data.out_scale)):
        tensors[f"target.{name}"] = torch.tensor(value, dtype=torch.float64)
    return MergedNetworks([like], [tensors], distilled=True)


def _train_epoch(student: SupervisedTrainer, trial: int) -> None:
    try:
        student.train_epoch()
    except NonFiniteError as error:
        raise UserError(
            f"--distill: a student with the configuration of trial {trial} cannot be trained: its loss is not finite "
            f"in epoch {student.epoch + 1}; take --method soup for one network per fold"
        ) from error
