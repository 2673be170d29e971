"""Batches of windows on the device that computes: gathered from the memory map, or kept on the device as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from raypipe.core.folds import Index

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore

T = TypeVar("T")

RESIDENT_SHARE = 0.5
"""A store is kept on a GPU where it fills no more than this share of the memory that is free."""
_BLOCK = 1024


class Batch(NamedTuple):
    """What one step is computed from."""

    x: Tensor
    """Windows (B, C, T)."""
    y: Tensor
    """Standardised values (B,), classes (B,), or class shares (B, K)."""
    masks: Tensor | None
    """Dropout masks of the step (see `Conformer.dropout_plan`); SAM's passes share them."""


class WindowLoader:
    """Windows by number, as float32 on a device.

    On a CPU they are copied out of the memory map. On a GPU the whole store lies in its memory where it fits, each
    window's channels as float16 between -1 and 1 with their own offset and scale (2 bytes a sample; no more than 1/8192
    of a channel's range within its window off); else batches pass through pinned memory.

    Parameters
    ----------
    windows
        The store.
    device
        Where to.
    resident
        Whether to keep the store on the device; None decides as said.
    """

    def __init__(
        self, windows: WindowStore, device: str | torch.device = "cpu", *, resident: bool | None = None
    ) -> None:
        self.windows = windows
        self.device = torch.device(device)
        if resident is None:
            resident = self.device.type == "cuda" and resident_bytes(windows) <= RESIDENT_SHARE * _free(self.device)
        self._kept = self._load() if resident else None

    @property
    def resident(self) -> bool:
        """Whether the store lies on the device."""
        return self._kept is not None

    def gather(self, index_B: Index, offset_B: Index | None = None) -> Tensor:
        """Crops (B, C, crop_samples) of windows in microvolts; see `WindowStore.gather`."""
        if self._kept is None:
            x_BCT = torch.from_numpy(self.windows.gather(index_B, offset_B))
            if self.device.type == "cpu":
                return x_BCT
            return x_BCT.pin_memory().to(self.device, non_blocking=True)
        half_NCT, scale_NC2 = self._kept
        rows_B = torch.from_numpy(np.asarray(index_B, np.int64)).to(self.device)
        offsets = self.windows.offsets(index_B) if offset_B is None else np.asarray(offset_B, np.int64)
        samples_T = torch.arange(self.windows.crop_samples, device=self.device)
        sample_B1T = (torch.from_numpy(offsets).to(self.device)[:, None] + samples_T)[:, None]
        x_BCT = half_NCT[rows_B].gather(2, sample_B1T.expand(-1, self.windows.n_channels, -1)).float()
        scale_BC2 = scale_NC2[rows_B]
        return torch.addcmul(scale_BC2[..., :1], x_BCT, scale_BC2[..., 1:])

    def ahead(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; where they come from another memory, the next is fetched while one is worked on."""
        return batches if self.device.type == "cpu" or self.resident else prefetch(batches)

    def _load(self) -> tuple[Tensor, Tensor]:
        n, channels, samples = len(self.windows), self.windows.n_channels, self.windows.window_samples
        half_NCT = torch.empty(n, channels, samples, dtype=torch.float16, device=self.device)
        scale_NC2 = torch.empty(n, channels, 2, device=self.device)
        for start in range(0, n, _BLOCK):
            index = np.arange(start, min(start + _BLOCK, n))
            x_BCT = torch.from_numpy(self.windows.whole(index)).to(self.device)
            low_BC, high_BC = x_BCT.amin(2), x_BCT.amax(2)
            centre_BC, scale_BC = (low_BC + high_BC) / 2, ((high_BC - low_BC) / 2).clamp_min(torch.finfo().tiny)
            half_NCT[start : start + len(index)] = ((x_BCT - centre_BC[..., None]) / scale_BC[..., None]).half()
            scale_NC2[start : start + len(index)] = torch.stack((centre_BC, scale_BC), dim=2)
        return half_NCT, scale_NC2


def resident_bytes(windows: WindowStore) -> int:
    """What a store takes on a device."""
    return len(windows) * windows.n_channels * (2 * windows.window_samples + 8)


def _free(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0])


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order, each asked for, in one other thread, while the one before it is used."""
    end = object()
    ask: Callable[[], object] = lambda: next(items, end)  # noqa: E731
    with ThreadPoolExecutor(1, thread_name_prefix="raypipe-feed") as pool:
        waiting = pool.submit(ask)
        while (item := waiting.result()) is not end:
            waiting = pool.submit(ask)
            yield item  # type: ignore[misc]
