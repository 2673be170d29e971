"""raypipe: fault-tolerant hyperparameter search and leak-free ensembles for EEG decoding, on Ray."""

# ruff: noqa: F403, F405 - raypipe.api defines the names; __all__ repeats them, so that this module can be imported alone

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raypipe.api import *

__all__ = [
    "CrossValidation",
    "DiskFullError",
    "InterruptedSweepError",
    "LeakError",
    "PrintProgress",
    "Run",
    "StopRequest",
    "SweepCallback",
    "UserError",
    "cross_validate",
    "export",
    "fit_ensemble",
    "from_arrays",
    "from_braindecode",
    "from_epochs",
    "from_moabb",
    "inspect_bids",
    "load_encoder",
    "load_ensemble",
    "open_windows",
    "predict",
    "prepare",
    "pretrain",
    "rerun",
    "resume",
    "stream",
    "sweep",
]


def __getattr__(name: str) -> Any:
    # Names are imported when they are first used, because torch and Ray take seconds to import.
    if name not in __all__:
        raise AttributeError(f"module 'raypipe' has no attribute '{name}'")
    from raypipe.core.supported import unsupported

    if unsupported():
        raise ImportError(unsupported())
    from raypipe import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
