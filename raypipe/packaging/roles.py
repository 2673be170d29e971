"""The role that a subject had when a bundle was trained."""

from __future__ import annotations

from raypipe.core.folds import HELD_OUT
from raypipe.packaging.bundle import LoadedEnsemble
from raypipe.recordings.recording import Recording

UNKNOWN = "unknown"
"""Role of windows whose subject is not named."""


def role_of(ensemble: LoadedEnsemble, recording: Recording) -> str:
    """Return the role of a recording's subject in training.

    A bundle of several data sets names subjects DATASET/LABEL. If none of them is this recording's, its label in any
    of them counts, so that no prediction is called new that may not be.
    """
    fold_of = ensemble.info.fold_map.fold_of
    label, dataset = recording.label, recording.root.resolve().name
    same = [name for name in fold_of if name in (label, recording.subject, f"{dataset}/{label}")]
    same = same or [name for name in fold_of if name.endswith(f"/{label}")]
    if not same:
        return "new"
    return "held out" if all(fold_of[name] == HELD_OUT for name in same) else "training"
