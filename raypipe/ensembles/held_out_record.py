"""Predictions for the windows of held-out subjects, and their file in the run (``ensemble/held_out.npz``)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.core.folds import HELD_OUT, Index
from raypipe.ensembles.scores import EvaluationSet

_ARRAY_KINDS = {
    "windows": "i",
    "subjects": "U",
    "groups": "U",
    "targets": "fiu",
    "predictions": "f",
    "trials": "f",
    "constant": "f",
    "baselines": "f",
    "baseline_weights": "f",
}
"""Kinds of NumPy types of the arrays of `HeldOut`."""


@dataclass(frozen=True)
class HeldOut:
    """Predictions for the windows of the held-out subjects."""

    windows: Index
    """(N,) window numbers in the store."""
    subjects: NDArray[np.str_]
    """(N,)."""
    groups: NDArray[np.str_]
    """(N,) group of each subject, or the subject where the run has no groups."""
    targets: NDArray[Any]
    """(N,) values, or class numbers; (N, K) of several values."""
    predictions: NDArray[np.float32]
    """(N, outputs) predictions of the shipped module: the value in target units, or class probabilities."""
    trials: NDArray[np.float32]
    """(M, N, outputs): mean over the fold models of each member."""
    constant: NDArray[np.float64]
    """(outputs,): the prediction without EEG, such as the mean of the search people, or of their windows."""
    baselines: NDArray[np.float32]
    """(B, N, outputs) predictions of each classical baseline."""
    baseline_weights: NDArray[np.float64]
    """(B, outputs): the weights of classes that each baseline decides by; ones of values."""

    @classmethod
    def from_npz(cls, data: bytes, *, n_members: int, n_baselines: int) -> HeldOut:
        """Read the content of a ``.npz`` file.

        Raises
        ------
        ValueError
            The file is damaged, or an array is missing or has another type or shape.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in cls.__annotations__}
        except Exception as error:  # zipfile, zlib and NumPy have an error of their own for each kind of damage
            raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
        for name, kinds in _ARRAY_KINDS.items():
            if arrays[name].dtype.kind not in kinds:
                raise ValueError(f"{name}: has values of type {arrays[name].dtype}")
        n, n_outputs = len(np.atleast_1d(arrays["targets"])), np.size(arrays["constant"])
        n_values = n_outputs if np.ndim(arrays["targets"]) == 2 else 1
        shapes = {
            **dict.fromkeys(("windows", "subjects", "groups"), (n,)),
            "targets": (n,) if n_values == 1 else (n, n_values),
            "predictions": (n, n_outputs),
            "trials": (n_members, n, n_outputs),
            "constant": (n_outputs,),
            "baselines": (n_baselines, n, n_outputs),
            "baseline_weights": (n_baselines, n_outputs),
        }
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name}: shape {arrays[name].shape}, expected {shape}")
        return cls(**arrays)

    @property
    def evaluation_set(self) -> EvaluationSet:
        """Targets and subjects in the form that score functions take."""
        return EvaluationSet(self.targets, self.subjects, np.full(len(self.targets), HELD_OUT), self.groups)
