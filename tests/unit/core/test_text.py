from __future__ import annotations

import pytest

from raypipe.core.text import format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (0.42, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (93, "1 min 33 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7540, "2 h 05 min"),
        (100 * 3600.0, "100 h 00 min"),
        (float("nan"), "unknown"),
    ],
)
def test_durations_have_their_two_largest_units(seconds, text):
    assert format_duration(seconds) == text
