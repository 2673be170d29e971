"""Write windows one by one to the ``.npy`` file of a shard."""

from __future__ import annotations

import hashlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from raypipe.data.manifest import Plan
from raypipe.data.shard_file import finish_hash, npy_header, window_digest
from raypipe.recordings.signal import UnreadableRecordingError

MAX_MEASURED = 32
"""Windows of a shard whose spread is measured."""
MAX_LOST = 0.02
"""Standard deviation of the rounding errors of float16 that a channel may have, as a fraction of its own."""
NEGLIGIBLE = 0.02
"""Standard deviation of rounding errors in microvolts that is below any amplifier's noise."""


class WindowWriter:
    """Write windows to an open ``.npy`` file, and take their hashes and their scale.

    Windows with missing samples are left out, so the number of windows is known only at the end. The header is then
    rewritten.

    Parameters
    ----------
    plan
        Plan of the store.
    expected
        Number of windows, if none is left out.
    where
        What the windows are of, for messages.

    Attributes
    ----------
    digests
        `shard_file.window_digest` of each window that was written, before alignment: copies differ after it where their
        people have other recordings too.
    sha256, bytes
        Hash of the samples, their shape and type, and the file's size; empty and 0 if no window was written.
    """

    def __init__(self, plan: Plan, expected: int, where: str) -> None:
        self._plan, self._expected, self._where = plan, expected, where
        self._every = 1 + expected // MAX_MEASURED
        self._digest = hashlib.sha256()
        self._spreads: list[NDArray[np.float32]] = []
        self._signal_C, self._lost_C = np.zeros((2, len(plan.channels)))
        self.digests: list[str] = []
        self.sha256, self.bytes = "", 0

    def begin(self, file: BinaryIO) -> None:
        """Write the header of the expected windows."""
        file.write(npy_header(self._shape(self._expected), self._plan.dtype))

    def add(self, file: BinaryIO, x_CT: NDArray[np.float32], microvolts_CT: NDArray[np.float32] | None = None) -> bool:
        """Append a window (C, T); return False, and write nothing, if it has missing samples.

        Parameters
        ----------
        microvolts_CT
            The window in microvolts, of which the scale and the digest are taken. Default: `x_CT`.

        Raises
        ------
        UnreadableRecordingError
            Its samples do not fit the type of the store.
        """
        if not np.isfinite(x_CT).all():
            return False
        if len(self.digests) % self._every == 0:
            self._spreads.append((x_CT if microvolts_CT is None else microvolts_CT).std(axis=1))
        stored_CT = self._convert(x_CT)
        data = stored_CT.tobytes()
        self.digests.append(window_digest(stored_CT if microvolts_CT is None else self._clip(microvolts_CT)))
        file.write(data)
        self._digest.update(data)
        return True

    def finish(self, file: BinaryIO) -> None:
        """Rewrite the header, and set `sha256` and `bytes`.

        Raises
        ------
        UnreadableRecordingError
            float16 has too few digits for a channel, because its offset is large beside its signal.
        """
        if not self.digests:
            return
        self._check_precision()
        self.bytes = file.seek(0, 2)
        shape = self._shape(len(self.digests))
        header = npy_header(shape, self._plan.dtype)
        file.seek(0)
        file.write(header)
        self.sha256 = finish_hash(self._digest, shape, self._plan.dtype)

    def channel_scales(self) -> tuple[float, ...]:
        """Return the median of a window's standard deviation in microvolts, by channel."""
        if not self._spreads:
            return ()
        return tuple(float(f"{scale:.4g}") for scale in np.median(self._spreads, axis=0))

    def _shape(self, rows: int) -> tuple[int, int, int]:
        return rows, len(self._plan.channels), self._plan.window_samples

    def _clip(self, x_CT: NDArray[np.float32]) -> NDArray[Any]:
        limit = float(np.finfo(self._plan.dtype).max)  # before alignment, samples may be too large for float16
        return np.clip(x_CT, -limit, limit).astype(self._plan.dtype)

    def _convert(self, x_CT: NDArray[np.float32]) -> NDArray[Any]:
        if self._plan.dtype == "float16" and np.abs(x_CT).max() > np.finfo(np.float16).max:
            raise UnreadableRecordingError(
                f"{self._where}: samples of {np.abs(x_CT).max():.0f} uV do not fit float16 (65504); "
                "use float32, or a band that removes the offset"
            )
        stored_CT = x_CT.astype(self._plan.dtype)
        if self._plan.dtype == "float16":
            self._signal_C += x_CT.var(axis=1, dtype=np.float64)
            self._lost_C += (stored_CT - x_CT).var(axis=1, dtype=np.float64)
        return stored_CT

    def _check_precision(self) -> None:
        """Compare the rounding errors within windows with the signal, over all windows."""
        error_C = np.sqrt(self._lost_C / len(self.digests))
        spread_C = np.sqrt(self._signal_C / len(self.digests))
        is_lost_C = error_C > np.maximum(MAX_LOST * spread_C, NEGLIGIBLE)
        if is_lost_C.any():
            worst = int(np.argmax(np.where(is_lost_C, error_C / np.maximum(spread_C, NEGLIGIBLE), 0)))
            raise UnreadableRecordingError(
                f"{self._where}: float16 rounds channel '{self._plan.channels[worst]}' by {error_C[worst]:.2g} uV, and "
                f"its signal within a window is {spread_C[worst]:.2g} uV; use float32, or a band or baseline that "
                "removes the offset"
            )
