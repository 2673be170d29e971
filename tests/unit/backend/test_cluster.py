"""Ray is started here where nobody names a cluster; Ctrl-C, once and twice, in this process."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from raypipe.backend import cluster
from raypipe.backend.cluster import on_first_interrupt
from raypipe.core.errors import UserError


def interrupt() -> None:
    """Have this process interrupted, and give its interpreter a chance to notice."""
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass


def test_the_first_ctrl_c_asks_and_the_second_stops():
    before, asked = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), on_first_interrupt(lambda: asked.append(1)):
        interrupt()
        assert asked == [1]
        interrupt()
    assert asked == [1]
    assert signal.getsignal(signal.SIGINT) is before


def test_afterwards_a_ctrl_c_is_what_it_was():
    before, asked = signal.getsignal(signal.SIGINT), []
    with on_first_interrupt(lambda: asked.append(1)):
        pass
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert asked == []


def test_in_another_thread_signals_are_left_alone():
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with on_first_interrupt(lambda: None):
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_without_an_address_no_cluster_is_joined_that_happens_to_run_here(monkeypatch):
    """Ray's own `init` joins whatever `ray start` of anybody has left its address in the temporary folder."""
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda *_: "127.0.0.1:6379")
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {"127.0.0.1:6379"})
    given = []
    monkeypatch.setattr(ray, "init", lambda address=None, **_: given.append(canonicalize_bootstrap_address(address)))
    ray.init()
    assert str(given.pop()).endswith(":6379")
    cluster._init(None)
    assert given == [None]


def test_no_cluster_at_an_address_is_one_line(monkeypatch):
    import ray

    def refuse(**_):
        raise ConnectionError("ray://x could not be reached\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    said = r"^--address x: no Ray cluster there \(ray://x could not be reached\); .* asks for RAY_AUTH_MODE=token and"
    with pytest.raises(UserError, match=said):
        cluster._init("x")


def test_a_cluster_that_wants_a_token_is_one_line(monkeypatch):
    import ray

    def refuse(**_):
        raise ray.exceptions.AuthenticationError("no authentication token was found\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match=r"^--address x: no authentication token was found"):
        cluster._init("x")


def test_loopback_is_asked_for_only_while_ray_is_started(monkeypatch):
    import ray
    from ray._private import ray_constants

    name, seen = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, []
    monkeypatch.setenv(name, "before")
    monkeypatch.setattr(ray, "init", lambda **_: seen.append((os.environ[name], ray_constants.ENABLE_RAY_CLUSTER)))
    cluster._init(None)
    cluster._init("there:6379")
    assert seen == [("0", False), ("before", True)]
    assert (os.environ[name], ray_constants.ENABLE_RAY_CLUSTER) == ("before", True)
