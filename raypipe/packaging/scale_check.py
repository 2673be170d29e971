"""Whether samples are of the scale of those that a bundle was trained on."""

from __future__ import annotations

import numpy as np

from raypipe.data.scales import MAX_RATIO
from raypipe.recordings.recording import Recording
from raypipe.recordings.signal import UnreadableRecordingError


def has_other_scale(usual: float, own: float) -> bool:
    """Return whether a spread of samples is `MAX_RATIO` times another one or more, or less; 0 is unknown."""
    return usual > 0 and own > 0 and not 1 / MAX_RATIO < own / usual < MAX_RATIO


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
    own = float(np.median(spreads)) if spreads else 0.0
    if has_other_scale(usual, own):
        raise UnreadableRecordingError(
            f"{recording.path}: its samples spread over {own:.3g} uV, those that the bundle was trained on over "
            f"{usual:.3g} uV; check the units in its header and in channels.tsv"
        )
