from __future__ import annotations

import json

import pytest

from raypipe import budget
from raypipe.budget import EVERY, Budget
from raypipe.errors import UserError
from raypipe.files import open_folder
from raypipe.lease import FILE, Lease, current


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(budget.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Held:
    """A lease as a budget sees it."""

    def __init__(self, spent=0.0, gpu_hours=0.0):
        self.spent, self.gpu_hours = spent, gpu_hours


def test_time_counts_over_all_drivers(clock):
    lease = Held(spent=59.0)
    limits = Budget(lease, 60.0, None)
    assert limits.over() == ""
    lease.spent = 61.0
    assert limits.over() == "the time budget was used up"


def test_gpus_count_while_they_are_held_and_no_more_than_there_are(clock):
    lease, there = Held(gpu_hours=1.0), 8.0
    limits = Budget(lease, None, 6.0)
    with limits.holding(4.0, lambda: there):
        clock.now += 1800
        assert limits.over() == ""
        assert lease.gpu_hours == pytest.approx(3.0)
        there = 1.0  # of the cluster's machines one is left; what was held until now was counted as it was
        clock.now += EVERY + 1
        limits.over()
        was = lease.gpu_hours
        clock.now += 1800
        assert limits.over() == ""
        assert lease.gpu_hours == pytest.approx(was + 0.5)
        there = 8.0
        clock.now += EVERY + 1
        limits.over()
        clock.now += 3600
        assert limits.over() == "the GPU-hours were used up"
    used = lease.gpu_hours
    clock.now += 3600  # Ray is started again in between: nothing is held
    limits.over()
    assert lease.gpu_hours == used


def test_a_sweep_that_breaks_off_has_counted_what_it_held(clock):
    lease = Held()
    with pytest.raises(KeyboardInterrupt), Budget(lease, None, None).holding(2.0, lambda: 2.0):
        clock.now += 1800
        raise KeyboardInterrupt
    assert lease.gpu_hours == pytest.approx(1.0)


def test_the_next_driver_goes_on_counting(tmp_path):
    folder = open_folder(tmp_path)
    with Lease(folder) as lease:
        lease.gpu_hours = 2.5
    assert current(folder)["gpu_hours"] == 2.5
    with Lease(folder) as lease:
        assert lease.gpu_hours == 2.5
    older = json.loads(folder.read(FILE))
    del older["gpu_hours"]  # written by a raypipe that did not count them
    folder.write(FILE, json.dumps(older).encode())
    with Lease(folder) as lease:
        assert lease.gpu_hours == 0.0


def test_gpu_hours_of_a_sweep_without_gpus_are_one_line():
    from raypipe.driver import _options

    with pytest.raises(UserError, match=r"--gpu-hours: the sweep uses no GPU.*--gpus-per-worker"):
        _options({"gpu_hours": 3.0})
    with pytest.raises(UserError, match="--gpu-hours: "):
        _options({"gpu_hours": -3.0, "gpus_per_worker": 1})
    assert _options({"gpu_hours": 3.0, "gpus_per_worker": 0.5}).gpu_hours == 3.0
