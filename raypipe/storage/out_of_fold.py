"""Out-of-fold predictions and weights as files, which are read without running any code in them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "raypipe-oof/1"


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions of a trial: each window predicted by the fold model that never saw its subject."""

    windows: NDArray[np.int64]
    """(N,) numbers of the windows in their store, ascending."""
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
        buffer = io.BytesIO()
        np.savez(buffer, format=np.array(FORMAT), **arrays)
        return buffer.getvalue()

    @classmethod
    def from_npz(cls, data: bytes) -> OutOfFold:
        """Read the content of a ``.npz`` file.

        Raises
        ------
        ValueError
            The file is truncated, changed, or of another format.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = dict(file)
            if (found := arrays.pop("format", np.array("none")).item()) != FORMAT:
                raise ValueError(f"format {found!r}, expected {FORMAT!r}")
            return cls(**arrays)
        except Exception as error:  # zipfile, zlib and NumPy have an error of their own for each kind of damage
            raise ValueError(f"{type(error).__name__}: {error}") from None


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
