"""Resources of a sweep, and its restart after the death of the broker or of Tune."""

from __future__ import annotations

import signal
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.backend.executor import MAX_RESTARTS, _run_in_thread, supervise
from raypipe.backend.resources import divide_resources as fit
from raypipe.backend.resources import max_trials_on_driver, wait_for_resources, workers_per_trial
from raypipe.core.errors import InterruptedSweepError, LostSweepError, UserError
from raypipe.core.options import SweepOptions
from raypipe.core.stop import StopRequest
from raypipe.trial.callback import SweepCallback
from tests.support.callbacks import Recorder


@pytest.mark.parametrize(
    ("folds", "room", "size"), [(4, 2, 2), (5, 2, 1), (5, 5, 5), (5, 4, 1), (4, 16, 4), (3, 1, 1), (6, 4, 3), (8, 4, 4)]
)
def test_workers_a_trial(folds, room, size):
    assert workers_per_trial(folds, room) == size


@given(st.integers(2, 20), st.integers(1, 64))
def test_hardly_any_worker_idles(folds, room):
    size = workers_per_trial(folds, room)
    assert 1 <= size <= min(folds, room)
    assert folds / (size * -(-folds // size)) >= 0.95


def layout(n_folds=4, cpus=2.0, gpus=0.0, **options):
    return fit(SweepOptions(**options), n_folds, {"CPU": cpus, "GPU": gpus})


def test_all_that_fits_runs_at_a_time():
    assert layout() == (2, 1)
    assert layout(n_folds=5) == (1, 2)
    assert layout(cpus=16) == (4, 4)
    assert layout(cpus=16, concurrent=2) == (4, 2)
    assert layout(cpus=16, concurrent=99) == (4, 4)
    assert layout(cpus=16, workers=8) == (4, 4)  # no more workers than folds
    assert layout(cpus=16, gpus=2, gpus_per_worker=0.25) == (4, 2)


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match=r"4 worker\(s\) of 1 CPU.*there are 2 CPU"):
        layout(workers=4)
    with pytest.raises(UserError, match=r"1 GPU\(s\) each do not fit: there are 2 CPU\(s\) and 0 GPU"):
        layout(gpus_per_worker=1)


def test_the_drivers_machine_bounds_trials_at_a_time(monkeypatch):
    nodes = [
        {"NodeID": "head", "Resources": {"memory": 1e9}},
        {"NodeID": "b", "Resources": {"memory": 9e9, "CPU": 1.0}},
    ]
    monkeypatch.setattr("ray.nodes", lambda: [*nodes, {"NodeID": "c", "Resources": {"CPU": 1.0}}])
    assert max_trials_on_driver("head", 230 * 10**6) == 4
    assert max_trials_on_driver("b", 230 * 10**6) == 39
    assert max_trials_on_driver("head", 2 * 10**9) == 1, "one is tried wherever it is"
    assert max_trials_on_driver("head", 0) > 10**6, "simulated trials take nothing"
    assert max_trials_on_driver("c", 230 * 10**6) > 10**6, "a Ray that counts no memory"


class Growing:
    """A cluster that gets a CPU a second, up to some; what it is asked for."""

    def __init__(self, monkeypatch, most):
        self.seconds, self.most, self.asked, self.seen = 0.0, most, [], Recorder()
        monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": min(self.seconds, self.most)})
        monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: self.asked.append(bundles))

    def sleep(self, seconds):
        self.seconds += seconds

    def fit(self, stop=None, **options):
        clock, sleep = (lambda: self.seconds), self.sleep
        return wait_for_resources(SweepOptions(**options), 4, self.seen, stop or StopRequest(), clock, sleep)


def test_a_cluster_without_room_is_asked_for_machines_and_waited_for(monkeypatch):
    cluster = Growing(monkeypatch, most=8)
    assert cluster.fit(address="auto", workers=2, concurrent=3) == (2, 3)
    assert cluster.seconds == 6
    assert cluster.asked == [[{"CPU": 1}] * 6, []], "asked once, and no more than was needed is kept"
    (waiting,) = cluster.seen.of("on_waiting")
    assert "do not fit: there are 0 CPU" in waiting.reason


def test_a_cluster_that_does_not_grow_is_used_as_it_is_and_an_empty_one_is_one_line(monkeypatch):
    cluster = Growing(monkeypatch, most=4)
    assert cluster.fit(address="auto", workers=2, concurrent=3) == (2, 2)
    assert 600 < cluster.seconds < 610
    with pytest.raises(UserError, match="there are 0 CPU"):
        Growing(monkeypatch, most=0).fit(address="auto")


def test_a_stop_is_heard_while_a_cluster_is_waited_for(monkeypatch):
    cluster, stop = Growing(monkeypatch, most=0), StopRequest()
    cluster.seen._then = lambda *_: stop.set()
    with pytest.raises(InterruptedSweepError):
        cluster.fit(stop, address="auto")
    assert cluster.seconds == 0 and cluster.asked[-1] == [], "the request for machines is withdrawn"


def test_this_machine_does_not_grow(monkeypatch):
    cluster = Growing(monkeypatch, most=8)
    with pytest.raises(UserError, match="do not fit"):
        cluster.fit()
    assert (cluster.seconds, cluster.asked) == (0, [])


class Deaths:
    """Executes a sweep and dies, again and again, with or without an epoch before."""

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


def test_nothing_is_executed_where_the_dead_one_had_done_all():
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
    """A handler that raises KeyboardInterrupt until it was seen."""

    def handle(*_):
        if not seen.is_set():
            raise KeyboardInterrupt

    return handle
