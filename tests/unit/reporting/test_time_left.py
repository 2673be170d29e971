"""The time that a sweep still needs."""

from __future__ import annotations

from raypipe.reporting.time_left import TimeLeft, TrialWork, time_left

FITTED = TrialWork(2.0, 1.0, 0.0, 1)
TRAINED = TrialWork(30.0, 1.0, 0.0, 16)


def test_trials_to_come_cost_what_those_of_their_kind_have_cost():
    assert time_left([], 4, 1) is None
    assert time_left([TRAINED, TrialWork(10.0, 1.0, 0.0, 16)], 4, 1) == (40.0, False), "one stopped early counts too"
    assert time_left([TRAINED] * 2, 4, 2) == (30.0, False)
    assert time_left([TRAINED] * 4, 4, 2) is None, "all have ended"


def test_cheap_trials_say_nothing_of_networks():
    """The first trials of a search over families take seconds, and networks minutes."""
    assert str(time_left([FITTED, FITTED], 4, 1)) == "at least 4.0 s"
    fresh = TrialWork(0.0, 0.0, 1.0, 16)
    assert time_left([FITTED] * 6 + [fresh], 8, 1) is None, "nothing shows yet what it costs"
    begun = TrialWork(10.0, 0.25, 0.75, 16)
    assert time_left([FITTED] * 6 + [begun], 8, 1) == (30.0 + 40.0, False)
    assert str(time_left([FITTED] * 6 + [TRAINED], 8, 1)) == "about 30 s"


def test_what_an_earlier_driver_has_trained_is_neither_gained_nor_left():
    resumed = TrialWork(10.0, 0.25, 0.25, 8)
    assert time_left([resumed], 1, 1) == TimeLeft(10.0, at_least=False)
