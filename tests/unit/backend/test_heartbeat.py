"""Slots' heartbeats and the driver's watchdog. Ray is imported, not started."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import ray

from raypipe.backend import heartbeat


class Remote:
    """A method of an actor's, which notes its calls and answers with what it is given."""

    def __init__(self, answer=None):
        self.calls, self.answer = [], answer
        self.called = threading.Event()

    def remote(self, *arguments):
        self.calls.append(arguments)
        self.called.set()
        return self.answer


@pytest.fixture
def cluster(monkeypatch):
    """What the watchdog asks Ray for: answers that are there or not, and who is killed."""
    made = SimpleNamespace(ready=False, found=[], killed=[])

    def get(asked):
        if isinstance(made.found, Exception):
            raise made.found
        return [ray.cloudpickle.dumps(name) for name in made.found]

    monkeypatch.setattr(ray, "wait", lambda asked, timeout: (asked, []) if made.ready else ([], asked))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", made.killed.append)
    return made


def test_silent_slots_are_declared_dead_without_waiting(cluster, monkeypatch):
    clock, told = [0.0], []
    monkeypatch.setattr("raypipe.backend.heartbeat.time.monotonic", lambda: clock[0])
    desk = SimpleNamespace(silent=Remote("answer"))
    dog = heartbeat.Watchdog(desk, lambda: told.append(1), every=5)
    dog.look()
    assert desk.silent.calls == []
    clock[0] = 5.0
    dog.look()
    dog.look()
    assert desk.silent.calls == [(heartbeat.SILENCE,)] and cluster.killed == []
    cluster.ready, cluster.found = True, ["slot"]
    dog.look()
    assert cluster.killed == ["slot"] and told == [1]
    dog.look()
    assert len(desk.silent.calls) == 1  # not before it is time again
    clock[0] = 10.0
    assert not dog.look()
    assert len(desk.silent.calls) == 2
    assert dog.look()  # nobody has taken its place, and it is named again
    assert cluster.killed == ["slot"] and told == [1]


def test_a_desk_that_has_died_is_not_the_watchdogs_care(cluster):
    cluster.ready, cluster.found = True, ray.exceptions.RayActorError()
    dog = heartbeat.Watchdog(SimpleNamespace(silent=Remote("answer")), every=0)
    dog.look()
    dog.look()
    assert cluster.killed == []


def test_a_slot_beats_until_it_is_told_to_stop(monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT", 0.001)
    desk = SimpleNamespace(beat=Remote())
    over = heartbeat.send_heartbeats(desk, b"me")
    assert desk.beat.called.wait(30)
    thread = next(t for t in threading.enumerate() if t.name == "raypipe-beat")
    over.set()
    thread.join(30)
    assert not thread.is_alive() and set(desk.beat.calls) == {(b"me",)}
