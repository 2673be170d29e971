"""The fold loop: train one fold's model for one epoch, predict its validation windows, save everything, go on exactly.

Every random stream is derived from (seed, fold, epoch), never carried along: a fold that starts again at epoch 7 draws
the batches, mixing and dropout masks that it would have drawn had nothing happened, on any worker.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from raypipe.config import TrialConfig
from raypipe.errors import InterruptedEpochError, NonFiniteError
from raypipe.folds import Index
from raypipe.losses import class_weights, make_loss
from raypipe.messages import FoldEpoch
from raypipe.mixup import mix
from raypipe.models import build_model
from raypipe.models.conformer import normalise
from raypipe.sam import Sam, optimizer_step
from raypipe.schedule import Ema, lr_factor
from raypipe.seeds import derive_seed

if TYPE_CHECKING:
    from raypipe.windows import WindowStore

EVALUATION_BATCH = 256


class FoldTrainer:
    """One fold of one trial.

    Parameters
    ----------
    config
        The trial's configuration.
    windows
        The store of windows.
    train, validation
        Window indices of the fold's two sides.
    fold
        Number of the fold: it names the random streams.
    device
        Where to compute.

    Notes
    -----
    Folds of a trial, and trials of one seed and one architecture, start from the same weights. Regression targets are
    standardised by the training windows' mean and standard deviation; predictions are given back in target units.
    """

    def __init__(
        self,
        config: TrialConfig,
        windows: WindowStore,
        train: Index,
        validation: Index,
        *,
        fold: int,
        device: str = "cpu",
    ) -> None:
        self.config = config
        self.windows = windows
        self.train, self.validation = train, validation
        self.fold = fold
        self.device = torch.device(device)
        self.epoch = 0
        self.classes = len(windows.classes)
        targets = windows.targets[train]
        self.centre, self.scale = 0.0, 1.0
        if not self.classes:
            self.centre = float(np.mean(targets, dtype=np.float64))
            self.scale = float(np.std(targets, dtype=np.float64)) or 1.0
        torch.manual_seed(derive_seed("weights", config.seed))
        self.model = build_model(
            config.model,
            n_channels=windows.n_channels,
            n_times=windows.crop_samples,
            n_outputs=windows.n_outputs,
            sfreq=windows.sfreq,
        ).to(self.device)
        weights = None
        if self.classes and config.loss.balanced:
            weights = class_weights(targets, self.classes).to(self.device)
        self.loss = make_loss(config.loss, kind=windows.kind, n_classes=self.classes, class_weights=weights)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.optim.lr,
            betas=config.optim.betas,
            weight_decay=config.optim.weight_decay,
        )
        self.sam = None
        if config.sam.name != "none":
            self.sam = Sam(self.optimizer, rho=config.sam.rho, adaptive=config.sam.name == "asam")
        self.ema = Ema(self.model, config.optim.ema) if config.optim.ema else None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last, smaller batch is left out where there is a whole one."""
        return max(1, len(self.train) // self.config.batch_size)

    def run_epoch(self, interrupted: Callable[[], bool] = lambda: False) -> FoldEpoch:
        """Train one epoch and predict the validation windows.

        Raises
        ------
        NonFiniteError
            The loss is no number (SAM: nor is it without the perturbation).
        InterruptedEpochError
            `interrupted`, asked before every batch, said so.
        """
        start = time.perf_counter()
        losses = []
        self.model.train()
        for step, (x_BCT, y) in enumerate(self._batches(self.epoch + 1)):
            if interrupted():
                raise InterruptedEpochError
            losses.append(self._step(x_BCT, y, self.epoch * self.steps_per_epoch + step))
        self.epoch += 1
        return FoldEpoch(float(np.mean(losses)), self.predict(self.validation), time.perf_counter() - start)

    def _step(self, x_BCT: torch.Tensor, y: torch.Tensor, step: int) -> float:
        optim = self.config.optim
        total = self.config.epochs * self.steps_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * lr_factor(step, total, optim.warmup, optim.schedule)

        prepared = cast(Any, self.model).prepare(x_BCT)

        def closure() -> torch.Tensor:
            return self.loss(self.model(prepared, prepared=True), y)

        taken = optimizer_step(closure, self.model, self.optimizer, self.sam, optim.clip)
        if taken.skipped:
            raise NonFiniteError(f"fold {self.fold}, epoch {self.epoch + 1}: the training loss is not finite")
        if self.ema:
            self.ema.update(self.model)
        return taken.loss

    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        seed = derive_seed("epoch", self.config.seed, self.fold, epoch)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - for models that draw from NumPy's global stream
        rng = np.random.default_rng(seed)
        order = rng.permutation(self.train)
        spare = self.windows.window_samples - self.windows.crop_samples
        for step in range(self.steps_per_epoch):
            index = order[step * self.config.batch_size : (step + 1) * self.config.batch_size]
            offsets = rng.integers(0, spare + 1, size=len(index)) if spare else None
            x_BCT = torch.from_numpy(self.windows.gather(index, offsets)).to(self.device)
            y = self._targets(index, offsets)
            if self.config.mixup.name != "none":
                # Mixed as recorded, a loud window would count for more than its share.
                x_BCT = normalise(x_BCT, self.config.model.norm)
            yield mix(self.config.mixup, x_BCT, y, rng=rng, kind=self.windows.kind, n_classes=self.classes)

    def _targets(self, index: Index, offsets: Index | None) -> torch.Tensor:
        if self.classes:
            return torch.as_tensor(self.windows.targets[index], dtype=torch.int64, device=self.device)
        y = self.windows.targets[index] if offsets is None else self.windows.target_at(index, offsets)
        return torch.as_tensor((y - self.centre) / self.scale, dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def predict(self, index: Index) -> NDArray[np.float32]:
        """Predict windows in evaluation mode (N,) -> (N, outputs), in target units or as probabilities."""
        self.model.eval()
        parts = []
        with self.ema.swapped(self.model) if self.ema else nullcontext():
            for start in range(0, len(index), EVALUATION_BATCH):
                x_BCT = torch.from_numpy(self.windows.gather(index[start : start + EVALUATION_BATCH]))
                parts.append(self.model(x_BCT.to(self.device)).float().cpu())
        raw = torch.cat(parts)
        answer = torch.softmax(raw, dim=1) if self.classes else raw * self.scale + self.centre
        return answer.numpy()

    def weights(self) -> dict[str, torch.Tensor]:
        """What is evaluated and shipped: the model's state (the moving average, if one is kept)."""
        with self.ema.swapped(self.model) if self.ema else nullcontext():
            return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly after this epoch; random streams follow from its number."""
        return {
            "config": self.config.hash(),
            "fold": self.fold,
            "epoch": self.epoch,
            "centre": self.centre,
            "scale": self.scale,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken.

        Raises
        ------
        ValueError
            The state belongs to another configuration or fold.
        """
        if (state["config"], state["fold"]) != (self.config.hash(), self.fold):
            raise ValueError(
                f"a checkpoint of configuration {state['config']}, fold {state['fold']} cannot continue "
                f"configuration {self.config.hash()}, fold {self.fold}"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.centre, self.scale = state["centre"], state["scale"]
        self.epoch = state["epoch"]
