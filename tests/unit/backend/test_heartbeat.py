"""Heartbeats of trial actors and the driver's watchdog. Ray is imported, not started."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import ray

from raypipe.backend import heartbeat


class Remote:
    """Method of an actor that records its calls and returns `answer`."""

    def __init__(self, answer=None):
        self.calls, self.answer = [], answer
        self.called = threading.Event()

    def remote(self, *arguments):
        self.calls.append(arguments)
        self.called.set()
        return self.answer


@pytest.fixture
def cluster(monkeypatch):
    """Replace Ray's functions: whether an answer is ready, what it is, and which actors are killed."""
    made = SimpleNamespace(ready=False, found=[], killed=[])

    def get(asked):
        if isinstance(made.found, Exception):
            raise made.found
        return [ray.cloudpickle.dumps(name) for name in made.found]

    monkeypatch.setattr(ray, "wait", lambda asked, timeout: (asked, []) if made.ready else ([], asked))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", made.killed.append)
    return made


def test_actors_without_heartbeats_are_killed_without_waiting(cluster, monkeypatch):
    clock, lost = [0.0], []
    monkeypatch.setattr("raypipe.backend.heartbeat.time", SimpleNamespace(monotonic=lambda: clock[0]))
    broker = SimpleNamespace(silent_actors=Remote("answer"))
    watchdog = heartbeat.Watchdog(broker, lambda: lost.append(1), every=5)
    watchdog.check()
    assert broker.silent_actors.calls == []
    clock[0] = 5.0
    watchdog.check()
    watchdog.check()
    assert broker.silent_actors.calls == [(heartbeat.DEAD_AFTER_SECONDS,)] and cluster.killed == []
    cluster.ready, cluster.found = True, ["actor"]
    watchdog.check()
    assert cluster.killed == ["actor"] and lost == [1]
    watchdog.check()
    assert len(broker.silent_actors.calls) == 1  # not before it is time again
    clock[0] = 10.0
    assert not watchdog.check()
    assert len(broker.silent_actors.calls) == 2
    assert watchdog.check()  # no actor has replaced it, and it is still silent
    assert cluster.killed == ["actor"] and lost == [1]


def test_the_watchdog_ignores_a_dead_broker(cluster):
    cluster.ready, cluster.found = True, ray.exceptions.RayActorError()
    watchdog = heartbeat.Watchdog(SimpleNamespace(silent_actors=Remote("answer")), every=0)
    watchdog.check()
    watchdog.check()
    assert cluster.killed == []


def test_heartbeats_are_sent_until_the_event_is_set(monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.001)
    broker = SimpleNamespace(heartbeat=Remote())
    over = heartbeat.send_heartbeats(broker, b"me")
    assert broker.heartbeat.called.wait(60)
    thread = next(t for t in threading.enumerate() if t.name == "raypipe-heartbeat")
    over.set()
    thread.join(60)
    assert not thread.is_alive() and set(broker.heartbeat.calls) == {(b"me",)}
