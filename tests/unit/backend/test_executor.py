"""Restarts of a sweep after the death of the broker or of Tune, and a Ctrl-C while Tune runs."""

from __future__ import annotations

import signal
import threading

import pytest

from raypipe.backend.executor import MAX_RESTARTS, _run_in_thread, supervise
from raypipe.core.errors import LostSweepError, UserError
from raypipe.trial.callback import SweepCallback
from tests.support.callbacks import Recorder


class Deaths:
    """Executor that dies several times, each time with or without an epoch before."""

    def __init__(self, *progress: bool):
        self.progress, self.queues, self.restarts, self.seen = list(progress), [], 0, Recorder()
        self.exhausted = False

    def run(self, queue):
        self.queues.append(queue)
        if self.progress:
            raise LostSweepError("the broker has died", self.progress.pop(0))

    def restart(self):
        self.restarts += 1

    def supervised(self):
        supervise(self.run, self, lambda: Deaths(), self.restart, self.seen)


def test_a_sweep_whose_executor_dies_restarts_with_a_new_queue():
    deaths = Deaths(False, True, False)
    deaths.supervised()
    assert [given.reason for given in deaths.seen.of("on_restart")] == ["the broker has died"] * 3
    assert deaths.restarts == 3
    assert len(set(map(id, deaths.queues))) == 4


def test_deaths_without_an_epoch_in_between_are_counted():
    Deaths(*[False] * (MAX_RESTARTS - 1)).supervised()
    Deaths(*[False] * (MAX_RESTARTS - 1), True, *[False] * (MAX_RESTARTS - 1)).supervised()
    deaths = Deaths(*[False] * MAX_RESTARTS)
    with pytest.raises(
        UserError,
        match=rf"the broker has died, {MAX_RESTARTS} times without an epoch in between; the same command continues",
    ):
        deaths.supervised()
    assert deaths.restarts == MAX_RESTARTS - 1


def test_nothing_is_executed_if_no_trial_was_left():
    deaths = Deaths(True)
    done = Deaths()
    done.exhausted = True
    supervise(deaths.run, deaths, lambda: done, deaths.restart, SweepCallback())
    assert deaths.queues == [deaths]


def test_errors_of_tunes_thread_are_raised_here():
    with pytest.raises(ZeroDivisionError):
        _run_in_thread(lambda: 1 / 0, lambda: None)
    _run_in_thread(lambda: None, lambda: None)


def test_a_ctrl_c_ends_tune_before_it_is_raised():
    interrupted, order = threading.Event(), []

    def work():
        # Repeated: CPython misses a signal that arrives between its last check and the lock's system call.
        while not interrupted.wait(0.1):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        order.append("ended")

    def interrupt():
        order.append("interrupted")
        interrupted.set()

    handler = signal.signal(signal.SIGINT, once_interrupted(interrupted))
    try:
        with pytest.raises(KeyboardInterrupt):
            _run_in_thread(work, interrupt)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert order == ["interrupted", "ended"]


def once_interrupted(seen: threading.Event):
    """Return a handler that raises KeyboardInterrupt until `seen` is set."""

    def handle(*_):
        if not seen.is_set():
            raise KeyboardInterrupt

    return handle
