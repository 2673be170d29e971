"""Restarts of a sweep after the death of the broker or of Tune, and a Ctrl-C while Tune runs."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace

import pytest

from raypipe.backend import process_state
from raypipe.backend.executor import MAX_RESTARTS, _interrupt, _leave_lost_store, execute, supervise
from raypipe.backend.process_state import run_in_thread
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


def test_a_broker_that_dies_while_the_groups_start_is_a_lost_sweep():
    """Found by a kill at that moment: Ray's own error ended the driver."""
    import ray

    class DyingPool:
        closed = False

        def open(self, driver):
            raise ray.exceptions.ActorUnavailableError("The actor died unexpectedly", None)

        def close(self, *, now=False):
            self.closed = True

    driver = SimpleNamespace(cluster=SimpleNamespace(start=lambda: None), pool=DyingPool())
    with pytest.raises(LostSweepError, match="Ray has lost a part of the sweep") as caught:
        execute(driver, SimpleNamespace(parallel=1))
    assert not caught.value.progress and driver.pool.closed


def test_nothing_is_executed_if_no_trial_was_left():
    deaths = Deaths(True)
    done = Deaths()
    done.exhausted = True
    supervise(deaths.run, deaths, lambda: done, deaths.restart, SweepCallback())
    assert deaths.queues == [deaths]


def test_errors_of_tunes_thread_are_raised_here():
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 / 0, lambda: None)
    run_in_thread(lambda: None, lambda: None)


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
            run_in_thread(work, interrupt)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert order == ["interrupted", "ended"]


def once_interrupted(seen: threading.Event):
    """Return a handler that raises KeyboardInterrupt until `seen` is set."""

    def handle(*_):
        if not seen.is_set():
            raise KeyboardInterrupt

    return handle


def test_a_tune_that_waits_for_a_lost_control_store_is_left_waiting(monkeypatch):
    monkeypatch.setattr(process_state, "LEAVE_SECONDS", 0.0)
    back, lost, reasons = threading.Event(), iter([False, False, True]), []
    search = SimpleNamespace(abandon=reasons.append, progress=True)

    def left():
        return _leave_lost_store(SimpleNamespace(store_lost=next(lost)), search)

    run_in_thread(back.wait, lambda: pytest.fail("no Ctrl-C was pressed"), left)
    assert not back.is_set()
    (reason,) = reasons
    assert isinstance(reason, LostSweepError) and reason.progress, "the sweep restarts"
    back.set()


@pytest.mark.parametrize("away", [True, False])
def test_a_ctrl_c_waits_for_no_control_store_that_is_away(away):
    given = {}
    search = SimpleNamespace(fatal=None, abandon=lambda reason: given.update(reason=reason))
    groups = SimpleNamespace(close=given.update)
    _interrupt(SimpleNamespace(store_away=away), search, groups)
    assert isinstance(search.fatal, KeyboardInterrupt)
    assert given == {"now": True, "abandon": away} | ({"reason": search.fatal} if away else {})
