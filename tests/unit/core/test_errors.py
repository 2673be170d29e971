from __future__ import annotations

import pytest

from raypipe.core.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one line", "one line"),
        ("  first\nsecond", "first"),
        (
            "Training failed due to controller error:\n\n  The actor is not schedulable\nmore",
            "controller error: The actor",
        ),
        ("ends with a colon:", "ends with a colon:"),
        ("", "ValueError"),
        ("x" * 400, "x" * 300),
    ],
)
def test_the_first_line_of_an_error_has_its_reason(message, line):
    found = first_line(ValueError(message))
    assert line in found and "\n" not in found and len(found) <= 300
    assert "more" not in found and "second" not in found
