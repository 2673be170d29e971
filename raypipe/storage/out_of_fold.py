"""Out-of-fold predictions and weights as files, which are read without running any code in them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT, EPOCH_FORMAT = "raypipe-oof/1", "raypipe-epoch-predictions/1"


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions of a trial: each window predicted by the fold model that never saw its subject.

    With repeated folds each window has a row in each repeat (`raypipe.core.folds.FoldMap.predicted_rows`).
    """

    windows: NDArray[np.int64]
    """(N,) numbers of the windows in their store, ascending within each repeat."""
    folds: NDArray[np.int64]
    """(N,) fold of each window."""
    predictions: NDArray[np.float32]
    """(N, outputs) values in target units, or class probabilities."""
    variances: NDArray[np.float32] | None = None
    """(N,) predicted variances in squared target units; None where the network predicts none."""

    def to_npz(self) -> bytes:
        """Return the content of a ``.npz`` file."""
        arrays: dict[str, Any] = {"windows": self.windows, "folds": self.folds, "predictions": self.predictions}
        if self.variances is not None:
            arrays["variances"] = self.variances
        return _pack(FORMAT, arrays)

    @classmethod
    def from_npz(cls, data: bytes) -> OutOfFold:
        """Read the content of a ``.npz`` file.

        Raises
        ------
        ValueError
            The file is truncated, changed, or of another format.
        """
        try:
            return cls(**_unpack(FORMAT, data))
        except Exception as error:  # zipfile, zlib and NumPy have an error of their own for each kind of damage
            raise ValueError(f"{type(error).__name__}: {error}") from None


@dataclass(frozen=True)
class EpochPredictions:
    """Out-of-fold predictions of one epoch of a trial, in the order of `raypipe.core.folds.FoldMap.predicted_rows`.

    Which window a row is of, and which fold predicted it, follow from the run's fold map, so neither is stored.
    """

    predictions: NDArray[np.float32]
    """(N, outputs) values in target units, or class probabilities."""
    variances: NDArray[np.float32] | None = None
    """(N,) predicted variances in squared target units; None where the network predicts none."""
    are_values: bool = False
    """They are values, of which each is stored, and no probabilities."""

    def to_npz(self) -> bytes:
        """Return the content of a ``.npz`` file; the first class's probabilities follow from the others'."""
        n_outputs = self.predictions.shape[1]
        columns = self.predictions[:, 1:] if n_outputs > 1 and not self.are_values else self.predictions
        arrays: dict[str, Any] = {"n_outputs": np.array(n_outputs), "columns": columns}
        if n_outputs > 1 and self.are_values:
            arrays["are_values"] = np.array(True)
        if self.variances is not None:
            arrays["variances"] = self.variances
        return _pack(EPOCH_FORMAT, arrays)

    @classmethod
    def from_npz(cls, data: bytes) -> EpochPredictions:
        """Read the content of a ``.npz`` file.

        Raises
        ------
        ValueError
            The file is truncated, changed, or of another format.
        """
        try:
            arrays = _unpack(EPOCH_FORMAT, data)
            columns, n_outputs = arrays["columns"].astype(np.float32), int(arrays["n_outputs"])
            are_values = bool(arrays.get("are_values", n_outputs == 1))
            if columns.ndim != 2 or columns.shape[1] != (n_outputs if are_values else n_outputs - 1):
                raise ValueError(f"predictions of shape {columns.shape} and {n_outputs} outputs")
            if not are_values:
                columns = np.concatenate([1.0 - columns.sum(1, keepdims=True), columns], axis=1)
            return cls(columns, arrays.get("variances"), are_values)
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None


def _pack(form: str, arrays: dict[str, Any]) -> bytes:
    """Return arrays as the content of a ``.npz`` file of a format."""
    buffer = io.BytesIO()
    np.savez(buffer, format=np.array(form), **arrays)
    return buffer.getvalue()


def _unpack(form: str, data: bytes) -> dict[str, Any]:
    """Return the arrays that `_pack` has packed; raise ValueError, or an error of NumPy, where it cannot be read."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = dict(file)
    if (found := arrays.pop("format", np.array("none")).item()) != form:
        raise ValueError(f"format {found!r}, expected {form!r}")
    return arrays


def unpack_tensors(data: bytes) -> dict[str, Any]:
    """Read tensors (torch) by name from the content of a safetensors file.

    Raises
    ------
    ValueError
        The file is truncated, changed, or of another format.
    """
    from safetensors.torch import load

    try:
        return dict(load(data))
    except Exception as error:  # safetensors has an error class of its own for damage
        raise ValueError(f"{type(error).__name__}: {error}") from None
