"""Subjects that are aligned once, also where that fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raypipe.core.errors import UserError
from raypipe.data import alignment_units
from raypipe.data.alignment_units import SubjectAlignments


def test_a_subject_that_cannot_be_aligned_is_read_once(monkeypatch):
    asked = []

    def fail(unit, plan):
        asked.append([each.name for each in unit])
        raise UserError("one of its recordings is damaged")

    monkeypatch.setattr(alignment_units, "alignment_of", fail)
    recordings = [SimpleNamespace(subject="s1", name="a"), SimpleNamespace(subject="s1", name="b")]
    found = SubjectAlignments(recordings, SimpleNamespace(preprocessing=SimpleNamespace(align="subject")))
    for each in recordings:
        with pytest.raises(UserError, match="damaged"):
            found.of(each)
    assert asked == [["a", "b"]]
