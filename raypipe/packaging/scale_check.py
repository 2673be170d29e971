"""Whether samples are of the scale of those that a bundle was trained on."""

from __future__ import annotations

import numpy as np

from raypipe.data.scales import MAX_RATIO
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError

FLAT = "most of its channels are flat"
"""What a spread of 0 means."""


def has_other_scale(usual: float, own: float) -> bool:
    """Return whether samples spread `MAX_RATIO` times as much as usual or more, or less, or not at all.

    A usual spread of 0 is unknown.
    """
    return usual > 0 and not 1 / MAX_RATIO < own / usual < MAX_RATIO


def check_scale(usual: float, recording: Recording, spreads: list[float]) -> None:
    """Check that samples are of the usual scale.

    Parameters
    ----------
    usual
        Usual spread of a window's samples (uV); 0 where it is unknown.
    recording
        The recording.
    spreads
        Median over channels of the standard deviation of each window (uV); a bad stretch decides nothing.

    Raises
    ------
    UnreadableRecordingError
        They are not.
    """
    own = float(np.median(spreads)) if spreads else usual
    if has_other_scale(usual, own):
        hint = "check the units in its header and in channels.tsv" if own else FLAT
        raise UnreadableRecordingError(
            f"{recording.path}: its samples spread over {own:.3g} uV, those that the bundle was trained on over "
            f"{usual:.3g} uV; {hint}"
        )
