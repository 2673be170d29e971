"""Batches: windows and dropout masks on the device that computes, drawn for one epoch of one fold.

All random streams are derived from (seed, fold, epoch) and never carried over. A fold that continues at epoch 7 draws
the batches, mixing and dropout masks that it would have drawn without the interruption, on any worker, alone or
stacked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from raypipe.core.closed_form_config import ClosedFormConfig
from raypipe.core.config import TrialConfig
from raypipe.core.errors import UserError, first_line, out_of_memory
from raypipe.core.folds import Index
from raypipe.core.seeds import derive_seed
from raypipe.models.network import normalise
from raypipe.training.augmentations import augment_batch
from raypipe.training.device import available_bytes, free_memory
from raypipe.training.dropout import DropoutPlan, DropoutSampler
from raypipe.training.inner_split import split_inner
from raypipe.training.mixup import mix
from raypipe.training.sampling import MIN_BATCH, draw_chances, even_batches, target_scale
from raypipe.training.transfer import to_device

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

log = logging.getLogger(__name__)

T = TypeVar("T")
Numbers = float | NDArray[np.float64]
"""One number, or one for each value of a target (K,)."""

MAX_RESIDENT_FRACTION = 0.5
"""A store is kept on a GPU if it needs no more than this fraction of a process's memory; the rest is for training."""
_BLOCK_WINDOWS = 1024


class Batch(NamedTuple):
    """Everything that one step computes with."""

    x: Tensor
    """Windows (B, C, T), or the result of a network's `prepare`."""
    y: Tensor
    """Standardised values (B,) or (B, K), classes (B,), or fractions of classes (B, K)."""
    dropout: Tensor | None
    """(M,) dropout masks of the step (see `Network.dropout_plan`), which SAM's passes share."""


class FoldData:
    """Split the windows of one fold, scale their targets, and draw the batches of its epochs.

    Parameters
    ----------
    config
        The trial's configuration.
    loader
        The windows.
    train, validation
        Numbers of the windows on the fold's two sides.
    fold
        Number of the fold, which is part of the seeds.
    groups_N
        Group of each window of the store (`FoldMap.groups`), for ``early_stop=fold``; None where subjects share none.

    Attributes
    ----------
    train, inner
        Windows that are trained on, and those set apart to choose the epoch (none with ``early_stop=trial``).
    chances
        (N,) chance that a draw of an epoch is this window of `train`, which depends on ``sampling``.
    batch_sizes
        Windows of each batch of an epoch.
    centre, scale, mean
        Standardisation of regression targets, and their mean, over windows drawn with `chances`; arrays (K,) where a
        target has several values.
    out_centre, out_scale
        The network's output times `out_scale` plus `out_centre` is in target units; ``shrink`` is included.

    Raises
    ------
    UserError
        The fold trains on one window only, or ``early_stop=fold`` has too few subjects (`split_inner`).
    """

    def __init__(
        self,
        config: TrialConfig,
        loader: WindowLoader,
        train: Index,
        validation: Index,
        *,
        fold: int,
        groups_N: NDArray[Any] | None = None,
    ) -> None:
        self.config, self.loader, self.fold = config, loader, fold
        self.windows, self.device = loader.windows, loader.device
        self.n_classes = len(self.windows.classes)
        self.train, self.inner, self.validation = train, np.empty(0, np.int64), validation
        if config.early_stop == "fold":
            self.train, self.inner = split_inner(
                train,
                self.windows.subjects[train],
                self.windows.targets[train] if self.n_classes else None,
                groups=None if groups_N is None else groups_N[train],
                seed=config.seed,
                fold=fold,
            )
        if len(self.train) < MIN_BATCH:
            raise UserError(f"fold {fold} has {len(self.train)} window(s) to train on; training needs {MIN_BATCH}")
        self.chances = draw_chances(self.windows.subjects[self.train], config.sampling)
        self.batch_sizes = even_batches(len(self.train), config.batch_size)
        self.centre: Numbers = 0.0
        self.scale: Numbers = 1.0
        self.mean: Numbers = 0.0
        if not self.n_classes:
            targets = self.windows.targets[self.train]
            self.centre, self.scale = target_scale(targets, config.target_scale, self.chances)
            mean = np.average(targets.astype(np.float64), axis=0, weights=self.chances)
            self.mean = mean if targets.ndim == 2 else float(mean)
        self.out_centre = self.centre + config.shrink * (self.mean - self.centre)
        self.out_scale = self.scale * (1.0 - config.shrink)

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimiser steps per epoch."""
        return len(self.batch_sizes)

    @property
    def out_units(self) -> list[float | list[float]]:
        """Return `out_centre` and `out_scale` as a checkpoint has them."""
        return [each.tolist() if isinstance(each, np.ndarray) else each for each in (self.out_centre, self.out_scale)]

    def batches(self, epoch: int, dropout_plan: DropoutPlan) -> Iterator[Batch]:
        """Return the batches of an epoch (from 1), with dropout masks for a network's plan."""
        seed = derive_seed("epoch", self.config.seed, self.fold, epoch)
        return self.loader.prefetched(self._draw(seed, dropout_plan))

    def _draw(self, seed: int, dropout_plan: DropoutPlan) -> Iterator[Batch]:
        rng = np.random.default_rng(seed)
        dropout = DropoutSampler(derive_seed("masks", seed), self.device)
        assert not isinstance(self.config.model, ClosedFormConfig)
        for index in np.split(self.order(rng), np.cumsum(self.batch_sizes)[:-1]):
            offsets = self.offsets(rng, index)
            x_BCT, y = self.loader.gather(index, offsets), self.targets(index, offsets)
            x_BCT = augment_batch(self.config.augment, x_BCT, sfreq=self.windows.sfreq, rng=rng)
            if self.config.mixup.name != "none":
                # Normalised first. A loud window would otherwise dominate the mixture.
                x_BCT, y = mix(
                    self.config.mixup,
                    normalise(x_BCT, self.config.model.norm),
                    y,
                    rng=rng,
                    kind=self.windows.kind,
                    n_classes=self.n_classes,
                    subjects=self.windows.subjects[index],
                )
                if self.n_classes and y.ndim == 1:  # of one kind in all batches, mixed or not
                    y = F.one_hot(y, self.n_classes).to(x_BCT.dtype)
            yield Batch(x_BCT, to_device(y, self.device), dropout.draw(dropout_plan(len(index))))

    def order(self, rng: np.random.Generator) -> Index:
        """Draw the windows of an epoch: each one once, or with ``sampling=subject``, every subject equally often."""
        if self.config.sampling == "window":
            return rng.permutation(self.train)
        _, subject_N = np.unique(self.windows.subjects[self.train], return_inverse=True)
        by_subject = np.argsort(subject_N, kind="stable")
        count_S = np.bincount(subject_N)
        first_S = np.cumsum(count_S) - count_S
        drawn = rng.integers(0, len(count_S), size=len(self.train))
        drawn_N: Index = self.train[by_subject[first_S[drawn] + rng.integers(0, count_S[drawn])]]
        return drawn_N

    def offsets(self, rng: np.random.Generator, index: Index) -> Index | None:
        """Draw where windows are cropped; None where there is no choice."""
        spare = self.windows.window_samples - self.windows.crop_samples
        return rng.integers(0, spare + 1, size=len(index)) if spare else None

    def targets(self, index: Index, offsets: Index | None) -> Tensor:
        """Return classes (B,), or standardised values (B,) or (B, K) of windows cropped at `offsets`, on the host."""
        if self.n_classes:
            return torch.as_tensor(self.windows.targets[index], dtype=torch.int64)
        y = self.windows.targets[index] if offsets is None else self.windows.target_at(index, offsets)
        return torch.as_tensor((y - self.centre) / self.scale, dtype=torch.float32)

    def decode(self, raw_NK: Tensor) -> NDArray[np.float32]:
        """Turn a network's outputs into probabilities (N, K), or values in target units (N, 1) or (N, K).

        Where the network predicts a variance, it is a second column, in squared target units.
        """
        if self.n_classes:
            return torch.softmax(raw_NK, dim=1).numpy()
        scale, centre = self.out_scale, self.out_centre
        if not (isinstance(scale, float) and isinstance(centre, float)):  # several values, which have no variances
            scale_K, centre_K = (torch.as_tensor(each, dtype=raw_NK.dtype) for each in (scale, centre))
            return np.asarray((raw_NK * scale_K + centre_K).numpy())
        value_N1, variance_N = raw_NK[:, :1] * scale + centre, raw_NK[:, 1:] * scale**2
        return torch.cat([value_N1, variance_N], dim=1).numpy()


class WindowLoader:
    """Load windows by number, as float32 on a device.

    On a CPU they are copied from the memory map. On a GPU the whole store is kept in its memory where it fits, in the
    store's own type. Otherwise batches are copied through pinned memory. Both give the same batches, bit for bit.

    Parameters
    ----------
    windows
        The store.
    device
        The device.
    resident
        Whether to keep the store on the device; None keeps it on a GPU if it needs at most `MAX_RESIDENT_FRACTION` of
        the memory that this process may use (`device.available_bytes`). It is not kept if its loading fails for lack
        of memory.
    share
        The share of the GPU that this process may use.
    """

    def __init__(
        self,
        windows: WindowStore,
        device: str | torch.device = "cpu",
        *,
        resident: bool | None = None,
        share: float = 1.0,
    ) -> None:
        self.windows = windows
        self.device = torch.device(device)
        if resident is None:
            resident = self.device.type == "cuda" and _fits(windows, self.device, share)
        self._fits = resident
        self._kept_NCT: Tensor | None = None
        self.set_resident(True)

    @property
    def resident(self) -> bool:
        """Return whether the store is kept on the device."""
        return self._kept_NCT is not None

    def set_resident(self, wanted: bool) -> None:
        """Keep the store on the device, if it was chosen to be when the loader was made, or give its memory back."""
        if not wanted and self.resident:
            self._kept_NCT = None
            free_memory()
        elif wanted and self._fits and not self.resident:
            self._kept_NCT = self._load()
            self._fits = self.resident

    def gather(self, index_B: Index, offset_B: Index | None = None) -> Tensor:
        """Return crops (B, C, crop_samples) of windows in microvolts; see `WindowStore.gather`."""
        if self._kept_NCT is None:
            return to_device(self.windows.gather(index_B, offset_B), self.device)
        x_BCT = self._kept_NCT[to_device(np.asarray(index_B, np.int64), self.device)]
        if self.windows.crop_samples < self.windows.window_samples:
            offsets = self.windows.offsets(index_B) if offset_B is None else np.asarray(offset_B, np.int64)
            samples_T = torch.arange(self.windows.crop_samples, device=self.device)
            sample_B1T = (to_device(offsets, self.device)[:, None] + samples_T)[:, None]
            x_BCT = x_BCT.gather(2, sample_B1T.expand(-1, self.windows.n_channels, -1))
        return x_BCT.float()

    def prefetched(self, batches: Iterator[T]) -> Iterator[T]:
        """Return the same batches; where they are copied to a GPU, the next one is loaded while one is used."""
        return batches if self.device.type == "cpu" or self.resident else prefetch(batches)

    def _load(self) -> Tensor | None:
        """Copy the store to the device; return None if it has too little memory, which is no trial's fault."""
        n, channels, samples = len(self.windows), self.windows.n_channels, self.windows.window_samples
        dtype = getattr(torch, self.windows.dtype)
        try:
            kept_NCT = torch.empty(n, channels, samples, dtype=dtype, device=self.device)
            for start in range(0, n, _BLOCK_WINDOWS):
                block = np.arange(start, min(start + _BLOCK_WINDOWS, n))
                kept_NCT[start : start + len(block)] = torch.from_numpy(self.windows.whole(block))
            return kept_NCT
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            log.warning("the windows are copied batch by batch: %s", first_line(error))
        free_memory()
        return None


def resident_bytes(windows: WindowStore) -> int:
    """Return the bytes that a store needs on a device."""
    return len(windows) * windows.n_channels * windows.window_samples * np.dtype(windows.dtype).itemsize


def _fits(windows: WindowStore, device: torch.device, share: float) -> bool:
    return resident_bytes(windows) <= MAX_RESIDENT_FRACTION * available_bytes(device, share)


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """Return the same items in the same order; another thread computes the next one while one is used."""
    end = object()

    def next_item() -> object:
        return next(items, end)

    with ThreadPoolExecutor(1, thread_name_prefix="raypipe-loader") as pool:
        waiting = pool.submit(next_item)
        while (item := waiting.result()) is not end:
            waiting = pool.submit(next_item)
            yield item  # type: ignore[misc]
