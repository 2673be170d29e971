"""The whole signal of a recording, for comparison."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypipe.data.windower import OpenRecording
from raypipe.recordings.recording import Recording


def eeg_names(recording: Recording) -> list[str]:
    """Return the names of the EEG channels."""
    return list(OpenRecording(recording).channels.names)


def microvolts(recording: Recording, names: list[str] | None = None) -> NDArray[np.float64]:
    """Return the samples (C, T) of the EEG channels, or of those named, in the first span."""
    opened = OpenRecording(recording)
    places = opened.places(tuple(names or opened.channels.names))
    span = opened.signal.spans[0]
    picks = [opened.channels.picks[place] for place in places]
    n_samples = round(span.duration * opened.channels.rates[places[0]])
    volts = np.array([[opened.channels.volts[place]] for place in places])
    return opened.signal.read(picks, 0, 0, n_samples) * volts * 1e6
