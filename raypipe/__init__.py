"""raypipe: fault-tolerant hyperparameter search and leak-free ensembles for EEG decoding, on Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raypipe.bundle import load_ensemble
    from raypipe.driver import resume, sweep
    from raypipe.ensemble import fit_ensemble
    from raypipe.preparation import prepare
    from raypipe.results import Run

__all__ = ["Run", "fit_ensemble", "load_ensemble", "prepare", "resume", "sweep"]

_WHERE = {
    "Run": "raypipe.results",
    "fit_ensemble": "raypipe.ensemble",
    "load_ensemble": "raypipe.bundle",
    "prepare": "raypipe.preparation",
    "resume": "raypipe.driver",
    "sweep": "raypipe.driver",
}


def __getattr__(name: str) -> Any:
    # torch and Ray take seconds to import: only what is asked for is loaded.
    if name not in _WHERE:
        raise AttributeError(f"module 'raypipe' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)
