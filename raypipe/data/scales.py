"""Find recordings whose samples are a thousand times those of the others: their unit is wrong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MAX_RATIO = 100.0
"""Ratio of two scales from which on they are not of one unit. Units differ by factors of 1,000; people do by less."""
CHECK_UNITS = "check the units in its header and in channels.tsv (--skip-unreadable leaves it out)"


def other_scales(scales: Mapping[str, float]) -> dict[str, str]:
    """Return the recordings whose scale is not that of most, with a description of it.

    Scales are sorted, and split into groups where one is `MAX_RATIO` times the one before it. The largest group is that
    of most recordings; of two that are as large, the first.

    Parameters
    ----------
    scales
        Spread of the samples in microvolts of every recording, by key. Those without any spread (0) are left alone.
    """
    ordered = sorted((scale, key) for key, scale in scales.items() if scale > 0)
    if not ordered:
        return {}
    values = np.array([scale for scale, _ in ordered])
    groups = np.split(np.arange(len(values)), np.flatnonzero(values[1:] >= MAX_RATIO * values[:-1]) + 1)
    most = max(groups, key=len)
    usual = float(np.median(values[most]))
    return {
        key: f"its samples spread over {scale:.3g} uV, those of {len(most)} other recordings over {usual:.3g} uV"
        for place, (scale, key) in enumerate(ordered)
        if place not in most
    }
