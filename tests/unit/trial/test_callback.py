"""Callbacks of a sweep."""

from __future__ import annotations

import inspect

import pytest

from raypipe.trial.callback import CallbackList, SweepCallback
from tests.support.callbacks import EVENTS, Recorder


@pytest.mark.parametrize("event", EVENTS)
def test_a_list_of_callbacks_forwards_every_event_in_order(event):
    order = []
    first, second = Recorder(lambda *_: order.append("first")), Recorder(lambda *_: order.append("second"))
    parameters = list(inspect.signature(getattr(SweepCallback, event)).parameters)[1:]
    getattr(CallbackList([first, second]), event)(*parameters)
    assert first.names == second.names == [event]
    assert vars(first.of(event)[0]) == vars(second.of(event)[0]) == {name: name for name in parameters}
    assert order == ["first", "second"]


def test_the_base_class_ignores_every_event():
    callback = SweepCallback()
    for event in EVENTS:
        parameters = list(inspect.signature(getattr(SweepCallback, event)).parameters)[1:]
        assert getattr(callback, event)(*parameters) is None
