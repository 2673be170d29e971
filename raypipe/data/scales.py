"""Find recordings whose samples are a thousand times those of the others: their unit is wrong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from raypipe.recordings.recording import Recording

MAX_RATIO = 300.0
"""Largest ratio of a recording's scale to that of the others. Units differ by factors of 1,000; people do by less."""

CHECK_UNITS = "check the units in its header and in channels.tsv (--skip-unreadable leaves it out)"


def scale_problem(recording: Recording, scales: Mapping[str, float]) -> str:
    """Return one line if a recording's samples are much larger or smaller than those of the others, else nothing.

    Parameters
    ----------
    scales
        Spread in microvolts of every recording that has one, by key.
    """
    others = [scale for key, scale in scales.items() if key != recording.key]
    if recording.key not in scales or not others:
        return ""
    own, usual = scales[recording.key], float(np.median(others))
    if 1 / MAX_RATIO < own / usual < MAX_RATIO:
        return ""
    return f"{recording.path}: its samples spread over {own:.3g} uV, those of the other recordings over {usual:.3g} uV"
