"""Distillation (Hinton et al. 2015, arXiv:1503.02531): one network that has learned to answer as an ensemble does."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raypipe.core.errors import UserError
from raypipe.core.folds import Index
from raypipe.core.progress import Progress
from raypipe.data.window_store import WindowStore
from raypipe.ensembles.members import Soup
from raypipe.ensembles.oof import Floats
from raypipe.storage.records import Member
from raypipe.storage.run_store import RunStore
from raypipe.training.loader import WindowLoader
from raypipe.training.trainer import FoldTrainer
from raypipe.trial.failures import read_retry

LABELS = 0.5
"""Share of the label in what the student learns; the rest is what the ensemble answered."""


class _Student(FoldTrainer):
    """A trainer whose targets are an ensemble's answers and the labels, mixed; on the crops that were answered."""

    answers_NO: Floats  # noqa: N815 - a row for every window of the store; others than those trained on are unused

    def _offsets(self, rng: np.random.Generator, index: Index) -> Index | None:
        return None  # an answer is to the crop that windows are evaluated with

    def _targets(self, index: Index, offsets: Index | None) -> Tensor:
        labels = super()._targets(index, None)
        given_BO = torch.as_tensor(self.answers_NO[index], dtype=torch.float32, device=self.device)
        if self.classes:
            shares_BK = torch.nn.functional.one_hot(labels, self.classes).to(given_BO)
            return torch.lerp(given_BO, shares_BK, LABELS)
        # The student's answer is shrunk as its trial's is, and the ensemble's answers are shrunk already.
        return torch.lerp((given_BO[:, 0] - self.out_centre) / (self.out_scale or self.scale), labels, LABELS)


def require_scratch(run: RunStore, like: Member) -> None:
    """Refuse a student that would have the network of a trial which started from a pretrained encoder.

    Raises
    ------
    UserError
        It would: that network has learned from more than a student sees.
    """
    if run.config(like.trial).init.name != "none":
        raise UserError(
            f"--distill: trial {like.trial}, whose network the student would have, started from a pretrained encoder; "
            "take --method soup for one network a fold"
        )


def distill(
    run: RunStore,
    windows: WindowStore,
    like: Member,
    index: Index,
    answers_NO: Floats,
    progress: Progress | None = None,
) -> Soup:
    """Train one network on all search subjects, with the configuration of a trial, up to the trial's best epoch.

    (Where its folds chose their epochs themselves, up to the last that one of them trained.) It is trained in this
    process, on its GPU if there is one.

    Parameters
    ----------
    run, windows
        The run and its windows.
    like
        Whose configuration the student has; its mixing of windows is left out, and it starts at random.
    index
        (N,) windows that it learns from.
    answers_NO
        What the ensemble answers to them. They should be answers of an ensemble that was not fitted on them: a student
        that learns what its teacher knows by heart learns noise.
    progress
        Called with epochs done, epochs in all, and a text.

    Returns
    -------
    Soup
        With the student as its one network.

    Raises
    ------
    UserError
        See `require_scratch`.
    """
    require_scratch(run, like)
    config, result, retry = run.config(like.trial), run.result(like.trial), read_retry(run, like.trial)
    given = config.model_copy(update={"mixup": type(config.mixup)(), "early_stop": "trial"})
    feed = WindowLoader(windows, "cuda" if torch.cuda.is_available() else "cpu")
    micro_batch = retry.micro_batch if retry else None
    student = _Student(given, feed, index, index[:0], fold=run.folds.n_folds, micro_batch=micro_batch)
    student.answers_NO = np.zeros((len(windows), answers_NO.shape[1]))
    student.answers_NO[index] = answers_NO
    epochs = result.best_epoch if result is not None else config.epochs
    for epoch in range(1, epochs + 1):
        student.begin()
        for step, batch in enumerate(student.batches()):
            student.step(batch, step)
        student.epoch = epoch
        if progress:
            progress(epoch, epochs, "epochs of the student")
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in student.weights().items()}
    for name, value in (("centre", student.out_centre), ("scale", student.out_scale)):
        tensors[f"target.{name}"] = torch.tensor(value, dtype=torch.float64)
    return Soup([like], [tensors], student=True)
