"""A control store that is away is noticed before Ray ends the process; one that is suspended is not away."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import ray

from raypipe.backend import control_store
from raypipe.backend.control_store import RAY_LIMIT_VARIABLE, ControlStoreWatch, ray_limit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store():
    """A server that listens and answers nothing, as one that is suspended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address_of(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def test_a_store_that_listens_is_not_away_even_if_it_is_suspended(store, clock):
    watch = ControlStoreWatch(address_of(store), pytest.fail, clock=clock)
    for _ in range(5):
        clock.now += 60.0
        watch.probe()
        assert not watch.away and not watch.lost


def test_a_store_that_is_away_is_lost_before_ray_ends_the_process_and_not_once_it_is_back(store, clock):
    address, lines, noticed = address_of(store), [], []
    watch = ControlStoreWatch(address, lines.append, lambda: noticed.append(clock.now), clock)
    store.close()
    watch.probe()
    assert watch.away and not watch.lost
    clock.now += 35.0
    watch.probe()
    assert not watch.lost and noticed == [100.0]
    clock.now += 2.0
    assert watch.lost and not lines
    clock.now += 19.0
    watch.probe()
    watch.probe()
    (line,) = lines
    assert f"at {address} has been away for 56 s" in line and line.endswith("the same command continues from here")
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        watch.probe()
    assert not watch.away and not watch.lost


def test_a_watch_that_is_stopped_says_nothing(store, clock):
    watch = ControlStoreWatch(address_of(store), pytest.fail, clock=clock)
    store.close()
    watch.probe()
    watch.stop()
    clock.now += 100.0
    watch.probe()


def test_errors_of_this_process_do_not_mean_that_the_store_is_away(store, clock, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(control_store.socket, "create_connection", fail)
    watch = ControlStoreWatch(address_of(store), pytest.fail, clock=clock)
    watch.probe()
    assert not watch.away


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError(errno.EHOSTUNREACH, "No route to host")])
def test_a_host_that_is_gone_is_away(store, clock, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(control_store.socket, "create_connection", fail)
    watch = ControlStoreWatch(address_of(store), pytest.fail, clock=clock)
    watch.probe()
    assert watch.away


def test_the_limit_is_that_of_ray(monkeypatch, store, clock):
    program = Path(ray.__file__).parent / "_raylet.so"
    assert RAY_LIMIT_VARIABLE.removeprefix("RAY_").encode() in program.read_bytes()
    monkeypatch.delenv("RAY_gcs_rpc_server_reconnect_timeout_s", raising=False)
    assert ray_limit() == 60.0
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    assert ray_limit() == 600.0
    watch = ControlStoreWatch(address_of(store), pytest.fail, clock=clock)
    store.close()
    watch.probe()
    clock.now += 350.0
    assert not watch.lost
    clock.now += 20.0
    assert watch.lost


def test_the_thread_probes_until_it_is_stopped(store, monkeypatch):
    monkeypatch.setattr(control_store, "PROBE_SECONDS", 0.0)
    watch = ControlStoreWatch(address_of(store), pytest.fail)
    watch.start()
    store.accept()[0].close()
    store.accept()[0].close()
    watch.stop()
