"""Loaders of the stores of a sweep that has several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from raypipe.training.loader import WindowLoader

if TYPE_CHECKING:
    from raypipe.data.window_store import WindowStore


class StoreLoaders:
    """The loaders of a sweep's stores. One at a time keeps windows on a GPU, and one of several is made at first use.

    Parameters
    ----------
    windows
        The store, or several by name (`raypipe.data.named_stores.NamedStores`).
    device, share
        See `WindowLoader`.
    """

    def __init__(self, windows: WindowStore, device: str | torch.device = "cpu", *, share: float = 1.0) -> None:
        self.windows, self.device, self.share = windows, torch.device(device), share
        self._loaders: dict[str, WindowLoader] = {}
        if not windows.names:
            self.of("")

    @property
    def resident(self) -> bool:
        """Return whether a store is kept on the device."""
        return any(loader.resident for loader in self._loaders.values())

    def of(self, name: str) -> WindowLoader:
        """Return the loader of a store; the name is empty for a single store."""
        for other, loader in self._loaders.items():
            if other != name:
                loader.set_resident(False)
        if name not in self._loaders:
            self._loaders[name] = WindowLoader(self.windows.of(name), self.device, share=self.share)
        return self._loaders[name]
