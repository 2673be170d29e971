"""The fold loop: train one fold's model for one epoch, predict its validation windows, save everything, go on exactly.

Every random stream is derived from (seed, fold, epoch), never carried along: a fold that starts again at epoch 7 draws
the batches, mixing and dropout masks that it would have drawn had nothing happened, on any worker, alone or stacked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypipe.core.config import TrialConfig
from raypipe.core.errors import InterruptedEpochError, NonFiniteError, UserError
from raypipe.core.folds import Index
from raypipe.core.seeds import derive_seed
from raypipe.data.montage import electrode_positions
from raypipe.models.conformer import Conformer
from raypipe.models.network import normalise
from raypipe.models.registry import build_model
from raypipe.models.vit import ViT
from raypipe.training import precision as passes
from raypipe.training.checkpoint import clone_tensors
from raypipe.training.dropout import DropoutSampler
from raypipe.training.finetuning import (
    choose_trained,
    initial_id,
    keep_statistics,
    merged,
    parameter_groups,
    start_from,
)
from raypipe.training.inner_validation import InnerValidation, split_inner
from raypipe.training.loader import Batch, WindowLoader
from raypipe.training.losses import class_weights, make_loss
from raypipe.training.mixup import mix
from raypipe.training.optim import AdamW, Ema, lr_factor
from raypipe.training.result import FoldEpoch
from raypipe.training.sam import Sam, norm_parameters
from raypipe.training.step import Step, optimizer_step

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

EVALUATION_BATCH = 256
MOST_OVERFLOWS = 50
"""Steps in a row that float16 may skip, each with half the scale of the one before."""


class FoldTrainer:
    """One fold of one trial.

    Parameters
    ----------
    config
        The trial's configuration.
    windows
        The store of windows, or a `WindowLoader` of it; a store is fed to `device`.
    train, validation
        Window indices of the fold's two sides.
    fold
        Number of the fold: it names the random streams.
    device
        Where to compute; a `WindowLoader` knows.
    stem
        How the stem is computed (see `Stem`).
    micro_batch
        Windows whose gradients are computed at a time, where memory is short (see `passes.gradients`).
    encoder
        Weights of a pretrained encoder, for configurations that start from one.

    Raises
    ------
    UserError
        The configuration starts from a pretrained encoder, and there is none or one of other sizes.

    Notes
    -----
    Folds of a trial, and trials of one seed and one architecture, start from the same weights. Regression targets are
    standardised by the training windows' mean and standard deviation; predictions are given back in target units.
    """

    def __init__(
        self,
        config: TrialConfig,
        windows: WindowStore | WindowLoader,
        train: Index,
        validation: Index,
        *,
        fold: int,
        device: str = "cpu",
        stem: str = "fourier",
        micro_batch: int | None = None,
        encoder: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config, self.micro_batch = config, micro_batch
        self.feed = windows if isinstance(windows, WindowLoader) else WindowLoader(windows, device)
        self.windows = windows = self.feed.windows
        self.device = self.feed.device
        self.fold, self.epoch = fold, 0
        self.validation = validation
        self.train, self.inner = train, np.empty(0, np.int64)
        if config.early_stop == "fold":
            self.train, self.inner = split_inner(train, windows.subjects[train], seed=config.seed, fold=fold)
        self.choice = (
            InnerValidation(windows.metric, minimize=windows.kind == "regression") if len(self.inner) else None
        )
        self.classes = len(windows.classes)
        targets = windows.targets[self.train]
        self.centre, self.scale, self.mean = 0.0, 1.0, 0.0
        if not self.classes:
            self.centre, self.scale = target_scale(targets, config.target_scale)
            self.mean = float(np.mean(targets, dtype=np.float64))
        torch.manual_seed(derive_seed("weights", config.seed))
        model = build_model(
            config.model,
            n_channels=windows.n_channels,
            n_times=windows.crop_samples,
            n_outputs=windows.n_outputs,
            sfreq=windows.sfreq,
        ).to(self.device)
        if isinstance(model, ViT):
            place_electrodes(model, windows)
        elif isinstance(model, Conformer):
            model.stem.algorithm = stem
        self.model = cast(Conformer, model)  # the others have its prepare, dropout_plan and forward
        if config.init.name == "pretrained":
            if encoder is None:
                raise UserError("init/name=pretrained: this run has no pretrained encoder; give one with --init RUN")
            start_from(self.model, encoder)
        self.initial = initial_id(self.model)
        choose_trained(self.model, config.init)
        balanced = self.classes and config.loss.balanced
        weights = class_weights(targets, self.classes).to(self.device) if balanced else None
        self.loss = make_loss(
            config.loss, kind=windows.kind, n_classes=self.classes, class_weights=weights, bins=config.model.bins
        )
        optim = config.optim
        groups = parameter_groups(self.model, config.init)
        self.optimizer = AdamW(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
        self.sam = None
        if config.sam.name != "none":
            self.sam = Sam(
                self.optimizer,
                rho=config.sam.rho,
                method=config.sam.name,
                parameters=norm_parameters(self.model) if config.sam.only == "norm" else None,
                every=config.sam.every,
                alpha=config.sam.alpha,
            )
        self.dtype = passes.autocast_type(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None
        self.overflows = 0
        self.ema = Ema(self.model, optim.ema) if optim.ema else None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last, smaller batch is left out where there is a whole one."""
        return max(1, len(self.train) // self.config.batch_size)

    @property
    def stopped(self) -> bool:
        """Whether the fold has stopped by itself."""
        return self.choice is not None and self.epoch - self.choice.epoch >= self.config.patience

    # One epoch, in the pieces that a stack of folds runs side by side.

    def run_epoch(self, interrupted: Callable[[], bool] = lambda: False) -> FoldEpoch:
        """Train one epoch and predict the validation windows; a fold that has stopped gives what it gave before.

        Raises
        ------
        NonFiniteError
            The loss is no number (SAM: nor is it without the perturbation).
        InterruptedEpochError
            `interrupted`, asked before every batch, said so.
        """
        start = time.perf_counter()
        losses = []
        if not self.stopped:
            self.begin()
            for step, batch in enumerate(self.batches()):
                if interrupted():
                    raise InterruptedEpochError
                losses.append(self.step(batch, step))
        return self.end(losses, time.perf_counter() - start)

    def begin(self) -> None:
        """Make ready for an epoch."""
        self.model.train()
        keep_statistics(self.model, self.config.init)
        if self.sam:
            self.sam.restart()

    def step(self, batch: Batch, step: int) -> float:
        """Take the epoch's step number `step`; its loss."""
        self.set_rate(step)
        prepared = self.model.prepare(batch.x)
        how = self.model, self.optimizer, self.sam, self.config.optim.clip
        if self.micro_batch:
            given = self.model, prepared, batch.y, batch.masks, self.micro_batch, self.loss_of
            in_parts = partial(passes.gradients, *given, dtype=self.dtype, scaler=self.scaler)
            taken = passes.optimizer_step(in_parts, *how, scaler=self.scaler)
        else:
            whole = lambda: self.loss_of(self.forward(self.model, prepared, batch.masks), batch.y)  # noqa: E731
            taken = optimizer_step(whole, *how, scaler=self.scaler)
        self.after(taken)
        return taken.loss

    def set_rate(self, step: int) -> None:
        """Set the learning rate of the epoch's step number `step`."""
        optim, total = self.config.optim, self.config.epochs * self.steps_per_epoch
        ends = [epoch * self.steps_per_epoch for epoch in self.config.cycle_ends]
        factor = lr_factor(self.epoch * self.steps_per_epoch + step, total, optim.warmup, optim.schedule, ends)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * factor * group["rate"]

    def forward(self, model: Callable[..., Tensor], prepared: Tensor, masks: Tensor | None) -> Tensor:
        """Run a network, in the trial's precision, on what its `prepare` made."""
        with passes.autocast(self.device, self.dtype):
            return model(prepared, prepared=True, dropout_M=masks)

    def loss_of(self, raw: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch."""
        return self.loss(raw.float(), y)

    def after(self, taken: Step) -> None:
        """Take note of a step.

        Raises
        ------
        NonFiniteError
            It was skipped, and not for float16's short range.
        """
        self.overflows = self.overflows + 1 if taken.skipped else 0
        excused = self.scaler is not None and np.isfinite(taken.loss) and self.overflows <= MOST_OVERFLOWS
        if taken.skipped and not excused:
            raise NonFiniteError(f"fold {self.fold}, epoch {self.epoch + 1}: the training loss is not finite")
        if self.ema:
            self.ema.update(self.model)

    def end(self, losses: list[float], seconds: float) -> FoldEpoch:
        """End an epoch that was trained for `seconds`: predict, and choose, where the fold does so by itself."""
        start = time.perf_counter()
        stopped, loss = self.stopped, float(np.mean(losses)) if losses else float("nan")
        self.epoch += 1
        if self.choice is None:
            predictions = self.predict(self.validation)
            return FoldEpoch(loss, predictions, seconds + time.perf_counter() - start)
        inner = self.predict(self.inner)[:, : self.windows.n_outputs] if not stopped else None
        if inner is not None and self.choice.look(self.epoch, self.windows.targets[self.inner], inner):
            self.choice.keep(self._weights(), self.predict(self.validation), loss)
        return FoldEpoch(
            self.choice.loss if stopped else loss,
            self.choice.predictions,
            seconds + time.perf_counter() - start,
            by_fold=True,
            stopped=self.stopped,
        )

    def batches(self) -> Iterator[Batch]:
        """The batches of the next epoch."""
        return self.feed.ahead(self._batches(derive_seed("epoch", self.config.seed, self.fold, self.epoch + 1)))

    def _batches(self, seed: int) -> Iterator[Batch]:
        rng = np.random.default_rng(seed)
        masks = DropoutSampler(derive_seed("masks", seed), self.device)
        order = self._order(rng)
        for step in range(self.steps_per_epoch):
            index = order[step * self.config.batch_size : (step + 1) * self.config.batch_size]
            offsets = self._offsets(rng, index)
            x_BCT = self.feed.gather(index, offsets)
            y = self._targets(index, offsets)
            if self.config.mixup.name != "none":
                # Mixed as recorded, a loud window would count for more than its share.
                x_BCT, y = mix(
                    self.config.mixup,
                    normalise(x_BCT, self.config.model.norm),
                    y,
                    rng=rng,
                    kind=self.windows.kind,
                    n_classes=self.classes,
                    subjects=self.windows.subjects[index],
                )
            yield Batch(x_BCT, y, masks.draw(self.model.dropout_plan(len(index))))

    def _order(self, rng: np.random.Generator) -> Index:
        """The windows of an epoch."""
        if self.config.sampling == "window":
            return rng.permutation(self.train)
        _, person_N = np.unique(self.windows.subjects[self.train], return_inverse=True)
        by_person = np.argsort(person_N, kind="stable")
        count_S = np.bincount(person_N)
        first_S = np.cumsum(count_S) - count_S
        drawn = rng.integers(0, len(count_S), size=len(self.train))
        drawn_N: Index = self.train[by_person[first_S[drawn] + rng.integers(0, count_S[drawn])]]
        return drawn_N

    def _offsets(self, rng: np.random.Generator, index: Index) -> Index | None:
        """Where windows are cropped; None for the crops that they are evaluated with."""
        spare = self.windows.window_samples - self.windows.crop_samples
        return rng.integers(0, spare + 1, size=len(index)) if spare else None

    def _targets(self, index: Index, offsets: Index | None) -> Tensor:
        if self.classes:
            return torch.as_tensor(self.windows.targets[index], dtype=torch.int64, device=self.device)
        y = self.windows.targets[index] if offsets is None else self.windows.target_at(index, offsets)
        return torch.as_tensor((y - self.centre) / self.scale, dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def predict(self, index: Index) -> NDArray[np.float32]:
        """Predict windows in evaluation mode (N,) -> (N, outputs), in target units or as probabilities.

        Where the network tells the variance of its answers, it is one column more, in squared target units.
        """
        self.model.eval()
        size = max(1, EVALUATION_BATCH * (self.micro_batch or self.config.batch_size) // self.config.batch_size)
        parts = []
        with self.ema.swapped(self.model) if self.ema else nullcontext():
            for start in range(0, len(index), size):
                x_BCT = self.feed.gather(index[start : start + size])
                parts.append(self.forward(self.model, self.model.prepare(x_BCT), None).float().cpu())
        raw = torch.cat(parts)
        if self.classes:
            return torch.softmax(raw, dim=1).numpy()
        value_N1, variance_N = raw[:, :1] * self.out_scale + self.out_centre, raw[:, 1:] * self.out_scale**2
        return torch.cat([value_N1, variance_N], dim=1).numpy()

    # State

    @property
    def out_scale(self) -> float:
        """What the network's answer is multiplied by, `shrink` included."""
        return self.scale * (1.0 - self.config.shrink)

    @property
    def out_centre(self) -> float:
        """What is then added: answers are drawn to the training mean by `shrink`."""
        return self.centre + self.config.shrink * (self.mean - self.centre)

    @property
    def chooses_weights(self) -> bool:
        """Whether `weights` are other than the model's."""
        lora = self.config.init.name != "none" and self.config.init.tune == "lora"
        return lora or self.ema is not None or (self.choice is not None and bool(self.choice.weights))

    def weights(self) -> dict[str, Tensor]:
        """What is evaluated and shipped: the model's state (the average, if one is kept; the chosen epoch's)."""
        return self.choice.weights if self.choice is not None and self.choice.weights else self._weights()

    def _weights(self) -> dict[str, Tensor]:
        with self.ema.swapped(self.model) if self.ema else nullcontext():
            return cast(dict[str, Tensor], clone_tensors(merged(self.model, self.model.state_dict())))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly after this epoch, as copies; random streams follow from its number."""
        state = {
            "config": self.config.hash(),
            "initial": self.initial,
            "fold": self.fold,
            "epoch": self.epoch,
            "centre": self.centre,
            "scale": self.scale,
            "answer": [self.out_centre, self.out_scale],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "choice": self.choice.state_dict() if self.choice else None,
        }
        return cast(dict[str, Any], clone_tensors(state))

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
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        if self.choice:
            self.choice.load_state_dict(state["choice"])
        self.centre, self.scale = state["centre"], state["scale"]
        self.epoch = state["epoch"]


def target_scale(targets: NDArray[Any], how: str) -> tuple[float, float]:
    """Centre and scale of regression targets (N,): mean and SD, or, `robust`, median and 1.4826 * MAD (SD if 0)."""
    values = np.asarray(targets, np.float64)
    spread = float(values.std()) or 1.0
    if how == "standard":
        return float(values.mean()), spread
    centre = float(np.median(values))
    return centre, float(1.4826 * np.median(np.abs(values - centre))) or spread


def place_electrodes(model: ViT, windows: Any) -> None:
    """Give a network the positions of a store's channels."""
    found = torch.from_numpy(electrode_positions(windows.channels))
    model.places.positions.copy_(found.to(model.places.positions.device))
