"""Ray is joined or started, and left. Ray is imported, not started."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import warnings
from types import SimpleNamespace

import pytest

from raypipe.backend import cluster, connection
from raypipe.backend.cluster import Cluster
from raypipe.backend.connection import connect
from raypipe.backend.output import CapturedOutput
from raypipe.core.errors import UserError
from raypipe.trial.callback import SweepCallback
from tests.support.process import process_state


@pytest.fixture(autouse=True)
def answering(monkeypatch):
    """Let every address answer; `test_connection.py` has those that do not."""
    monkeypatch.setattr(connection, "bootstrap_address", lambda address: address)
    monkeypatch.setattr(connection, "wait_for_server", lambda address, seconds: None)


def test_without_an_address_no_cluster_is_joined_that_happens_to_run_here(monkeypatch, tmp_path):
    """``ray.init()`` joins any cluster whose address ``ray start`` has left in the temporary folder."""
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda *_: "127.0.0.1:6379")
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {"127.0.0.1:6379"})
    given = []
    monkeypatch.setattr(ray, "init", lambda address=None, **_: given.append(canonicalize_bootstrap_address(address)))
    ray.init()
    assert str(given.pop()).endswith(":6379")
    connect(None, tmp_path, CapturedOutput())
    assert given == [None]


def test_no_cluster_at_an_address_is_one_line(monkeypatch, tmp_path):
    import ray

    def refuse(**_):
        raise ConnectionError("ray://x could not be reached\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    said = r"^--address x: no Ray cluster there \(ray://x could not be reached\); .* needs RAY_AUTH_MODE=token and"
    with pytest.raises(UserError, match=said):
        connect("x", tmp_path, CapturedOutput())


def test_a_cluster_that_needs_a_token_is_one_line(monkeypatch, tmp_path):
    import ray

    def refuse(**_):
        raise ray.exceptions.AuthenticationError("no authentication token was found\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match=r"^--address x: no authentication token was found"):
        connect("x", tmp_path, CapturedOutput())


def test_a_cluster_without_a_token_is_one_line_where_this_process_uses_one(monkeypatch, tmp_path):
    """Ray sets the mode where a process starts its own Ray; actors of the cluster could not reach the process."""
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(connection, "_cluster_uses_token", lambda: True)
    connect("x", tmp_path, CapturedOutput())
    monkeypatch.setattr(connection, "_cluster_uses_token", lambda: False)
    with pytest.raises(UserError, match=r"^--address x: that cluster uses no token, .*; remove it from os.environ$"):
        connect("x", tmp_path, CapturedOutput())
    monkeypatch.delenv("RAY_AUTH_MODE")
    connect("x", tmp_path, CapturedOutput())


@pytest.fixture
def own_ray_with_token(monkeypatch):
    """The state of a process after ``ray.init(address="local")``, which outlasts ``ray.shutdown``."""
    import ray
    from ray._raylet import Config

    def init(**_):
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    yield init
    os.environ.pop("RAY_AUTH_MODE", None)
    Config.initialize("")


def test_the_token_mode_of_a_ray_of_the_sweeps_own_ends_with_the_sweep(own_ray_with_token):
    from ray._raylet import AuthenticationMode, get_authentication_mode

    with Cluster(None, SweepCallback()) as made:
        made.start()
        assert get_authentication_mode() == AuthenticationMode.TOKEN
    assert get_authentication_mode() == AuthenticationMode.DISABLED


def test_the_token_mode_is_read_again_before_a_cluster_is_joined(own_ray_with_token, monkeypatch, tmp_path):
    import ray
    from ray._raylet import AuthenticationMode, get_authentication_mode

    own_ray_with_token()
    monkeypatch.delenv("RAY_AUTH_MODE")
    modes = []
    monkeypatch.setattr(ray, "init", lambda **_: modes.append(get_authentication_mode()))
    connect("x", tmp_path, CapturedOutput())
    assert modes == [AuthenticationMode.DISABLED]


def test_loopback_is_asked_for_only_while_ray_is_started(monkeypatch, tmp_path):
    import ray
    from ray._private import ray_constants

    name, seen = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, []
    monkeypatch.setenv(name, "before")
    monkeypatch.setattr(ray, "init", lambda **_: seen.append((os.environ[name], ray_constants.ENABLE_RAY_CLUSTER)))
    connect(None, tmp_path, CapturedOutput())
    connect("there:6379", tmp_path, CapturedOutput())
    assert seen == [("0", False), ("before", True)]
    assert (os.environ[name], ray_constants.ENABLE_RAY_CLUSTER) == ("before", True)


@pytest.fixture
def changing_ray(monkeypatch):
    """Replace Ray by a fake whose `init` changes the process as the real one does, and more."""
    import ray

    made = SimpleNamespace(initialized=False, inside={}, error=None)

    def init(**_):
        if made.error:
            raise made.error
        made.initialized = True
        made.inside = {"usage": os.environ.get("RAY_USAGE_STATS_ENABLED")}
        os.environ["PYTHONBREAKPOINT"] = "ray.util.rpdb._driver_set_trace"
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        logging.getLogger("ray").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        logging.getLogger("ray").error("from Ray's logger")

    monkeypatch.setattr(ray, "is_initialized", lambda: made.initialized)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: setattr(made, "initialized", False))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    return made


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_the_callers_process_is_left_as_it_was(changing_ray, error):
    before = process_state()
    made = Cluster("there:6379", SweepCallback())
    with contextlib.suppress(ZeroDivisionError), made:
        made.start()
        assert signal.getsignal(signal.SIGTERM) is before["SIGTERM"], "also while the sweep runs"
        assert (sys.stdout, sys.stderr) == before["streams"][:2]
        if error:
            raise error
    assert process_state() == before
    assert changing_ray.inside == {"usage": "0"} and not changing_ray.initialized
    assert "from Ray's logger" in made.output._text


def test_the_callers_process_is_left_as_it_was_where_ray_does_not_start(changing_ray):
    before, changing_ray.error = process_state(), ConnectionError("no answer")
    with pytest.raises(UserError, match="no answer"), Cluster("there:6379", SweepCallback()) as made:
        made.start()
    assert process_state() == before


def test_a_ray_of_the_callers_stays_and_keeps_its_logger(changing_ray):
    changing_ray.initialized = True
    before = process_state()
    with Cluster(None, SweepCallback()) as made:
        made.start()
        assert logging.getLogger("ray").handlers == before["logger"][0]
        made.restart()
    assert changing_ray.initialized and changing_ray.inside == {}
    assert process_state() == before


def test_settings_of_the_user_are_kept(changing_ray, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    with Cluster(None, SweepCallback()) as made:
        made.start()
    assert changing_ray.inside == {"usage": "1"} and os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_a_lost_control_store_is_left_and_waited_for_and_one_line_says_how_to_continue(changing_ray, monkeypatch):
    lost = SimpleNamespace(away=True, lost=True, start=lambda: None, stop=lambda: None)
    monkeypatch.setattr(cluster, "ControlStoreWatch", lambda address, *_: lost)
    with Cluster("there:6379", SweepCallback()) as made:
        assert not (made.store_away or made.store_lost)
        made.start()
        assert made.store_away and made.store_lost
        made.restart()
        assert changing_ray.initialized and made.store_lost, "another watch"
        changing_ray.error = ConnectionError("no answer\nmore")
        with pytest.raises(UserError, match=r"^--address there:6379: .*no answer.*; the same command continues from"):
            made.restart()
        assert not (made.store_away or made.store_lost)


def test_a_ray_of_the_callers_is_not_left_when_its_control_store_is_lost(changing_ray, monkeypatch):
    changing_ray.initialized = True
    lost = SimpleNamespace(away=True, lost=True, start=lambda: None, stop=lambda: None)
    monkeypatch.setattr(cluster, "ControlStoreWatch", lambda address, *_: lost)
    with Cluster(None, SweepCallback()) as made:
        made.start()
        assert made.store_away and not made.store_lost
