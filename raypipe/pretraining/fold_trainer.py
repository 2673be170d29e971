"""A fold of a trial whose training is pretraining; a linear probe predicts its validation windows."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError
from raypipe.core.folds import Index
from raypipe.models.vit import ViT
from raypipe.pretraining.linear_probe import fit_probe
from raypipe.pretraining.trainer import Pretrainer
from raypipe.training.checkpoint import clone_tensors
from raypipe.training.fold_trainer import Interrupted, never
from raypipe.training.loader import WindowLoader
from raypipe.training.result import FoldEpoch


class PretrainTrainer:
    """Pretrain on a fold's training windows; a linear probe that is fitted on them predicts the validation windows.

    It is a `FoldTrainer`. So a sweep over pretraining is ranked by the probe's score over all folds.

    Parameters
    ----------
    config, loader, train, validation, fold
        See `FoldData`.
    groups_N
        Group of each window of the store (`FoldMap.groups`), which the choice of the probe's penalty does not divide.
    micro_batch
        See `Pretrainer`.

    Raises
    ------
    UserError
        The network is not a ViT, whose head the probe becomes.
    """

    stopped = False

    def __init__(
        self,
        config: TrialConfig,
        loader: WindowLoader,
        train: Index,
        validation: Index,
        *,
        fold: int,
        groups_N: NDArray[Any],
        micro_batch: int | None = None,
    ) -> None:
        self.loader, self.fold, self.groups_N = loader, fold, groups_N
        self.train, self.validation = train, validation
        if config.model.name != "vit":
            raise UserError("pretrain/name in a search space needs model/name=vit; use: raypipe pretrain simclr")
        self.pretrainer = Pretrainer(config, loader, train, part=fold, micro_batch=micro_batch)
        self.encoder = cast(ViT, self.pretrainer.encoder)

    @property
    def epoch(self) -> int:
        """Return the number of epochs that were trained."""
        return self.pretrainer.epoch

    def run_epoch(self, interrupted: Interrupted = never) -> FoldEpoch:
        """Pretrain one epoch, fit the probe, and predict the validation windows; see `FoldTrainer`."""
        start = time.perf_counter()
        loss = self.pretrainer.run_epoch(interrupted)
        windows = self.loader.windows
        weight, bias = fit_probe(
            self.pretrainer.features(self.train),
            windows.targets[self.train],
            self.groups_N[self.train],
            len(windows.classes),
        )
        with torch.no_grad():
            self.encoder.head.weight.copy_(weight)
            self.encoder.head.bias.copy_(bias)
        predictions = self.predict(self.validation)
        return FoldEpoch(loss, predictions, time.perf_counter() - start)

    @torch.no_grad()
    def predict(self, index: Index) -> NDArray[np.float32]:
        """Predict windows (N, outputs): values, or probabilities."""
        x_NF = torch.from_numpy(self.pretrainer.features(index)).to(self.loader.device)
        raw = self.encoder.head(x_NF).cpu()
        predictions: NDArray[np.float32] = (raw.softmax(1) if self.loader.windows.classes else raw).numpy()
        return predictions

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly after this epoch; see `FoldTrainer`.

        ``weights`` are the encoder with the probe as its head, ``model`` the module that is pretrained.
        """
        weights = clone_tensors(self.encoder.state_dict())
        own = {"fold": self.fold, "initial": "", "target": [0.0, 1.0], "weights": weights}
        return self.pretrainer.state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to where `state` was taken; see `FoldTrainer`."""
        self.pretrainer.load_state_dict(state)
