"""raypipe: fault-tolerant hyperparameter search and leak-free ensembles for EEG decoding, on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raypipe.api import (
        PrintProgress,
        Run,
        StopRequest,
        SweepCallback,
        UserError,
        export,
        fit_ensemble,
        load_encoder,
        load_ensemble,
        open_windows,
        predict,
        prepare,
        pretrain,
        rerun,
        resume,
        sweep,
    )

__all__ = [
    "PrintProgress",
    "Run",
    "StopRequest",
    "SweepCallback",
    "UserError",
    "export",
    "fit_ensemble",
    "load_encoder",
    "load_ensemble",
    "open_windows",
    "predict",
    "prepare",
    "pretrain",
    "rerun",
    "resume",
    "sweep",
]


def __getattr__(name: str) -> Any:
    # torch and Ray take seconds to import: only what is used is loaded.
    if name not in __all__:
        raise AttributeError(f"module 'raypipe' has no attribute '{name}'")
    from raypipe import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
