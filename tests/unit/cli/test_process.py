"""Signals and warnings of a verb that trains: Ctrl-C, once and twice, and SIGTERM."""

from __future__ import annotations

import signal
import warnings

import pytest

from raypipe.cli.process import training_process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_for_a_stop_and_the_second_stops(number):
    with pytest.raises(KeyboardInterrupt), training_process() as stop, stop.accepting():
        signal.raise_signal(number)
        assert stop.is_set()
        signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once_where_no_stop_is_accepted(number):
    with pytest.raises(KeyboardInterrupt), training_process() as stop:
        with stop.accepting():
            pass
        signal.raise_signal(number)
    assert not stop.is_set()


def test_handlers_and_filters_are_restored():
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers], list(warnings.filters)
    with training_process(), warnings.catch_warnings(record=True) as seen:
        warnings.warn("of a library", UserWarning, stacklevel=1)
        assert [signal.getsignal(number) for number in numbers] != before[0]
    assert seen == []
    assert ([signal.getsignal(number) for number in numbers], list(warnings.filters)) == before
