"""A sweep is reckoned on a cluster's own machines."""

from __future__ import annotations

import os
import socket

import pytest

from raypipe.backend import remote_call
from raypipe.core.errors import UserError
from raypipe.search.forecast import forecast
from raypipe.trial.callback import SweepCallback
from tests.support.callbacks import Recorder
from tests.support.rays import SharedRay

pytestmark = pytest.mark.ray


@pytest.fixture
def cluster(tmp_path):
    """The address of a head that runs nothing, and a machine with three cores and a GPU that is not there."""
    with SharedRay(tmp_path, [0]) as place:
        place.add_node(num_cpus=3, num_gpus=1)
        yield place.address


def test_it_is_measured_on_a_workers_share_and_reckoned_with_all_there_is(toy, cluster, monkeypatch):
    told, seen = Recorder(), []
    monkeypatch.setattr(remote_call, "NOTICE_SECONDS", 60.0)  # however slow this machine is
    options = {"address": cluster, "folds": 3, "trials": 6, "callback": told}
    found = forecast(toy / "space.py", toy / "store", progress=lambda *news: seen.append(news[:2]), **options)
    assert (found.workers, found.concurrent, found.cpus) == (3, 1, 1.0), "three cores, and none of the head"
    assert found.device == f"{socket.gethostname()}'s processor"
    assert all(0 < one.step < one.epoch < one.trial for one in found.costs)
    assert seen == [(number, len(found.costs)) for number in range(len(found.costs))]
    assert not told.of("on_waiting")
    more = forecast(toy / "space.py", toy / "store", cpus=30, **options)
    assert more.concurrent == 10, "what it will have, where that is said"

    with pytest.raises(UserError, match=r"--gpus-per-worker: \S+ has no GPU to measure on"):
        forecast(toy / "space.py", toy / "store", gpus_per_worker=1, **options)
    monkeypatch.setattr(remote_call, "NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(remote_call, "WAIT_SECONDS", 1.0)
    with pytest.raises(UserError, match=f"{cluster}: no machine had 4 core"):
        forecast(toy / "space.py", toy / "store", cpus_per_worker=4, **options)
    reasons = [given.reason for given in told.of("on_waiting")]
    assert reasons == ["no machine has 4 core(s) and 0 GPU(s) free"]

    monkeypatch.undo()
    with (
        remote_call.connect(cluster, SweepCallback(), cpus=1, gpus=0) as site,
        pytest.raises(UserError, match="the measuring process has died"),
    ):
        site.run(lambda: os._exit(1))
