from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from raypipe.core.errors import StorageError, UserError
from raypipe.core.record import with_digest
from raypipe.search.sweep import resume
from raypipe.storage.budget import Budget
from raypipe.storage.files import open_folder
from raypipe.storage.lease import DRIVER_FILE, EXPIRY_SECONDS, Lease, read_lease
from tests.support.faults import FailingFolder
from tests.support.toys import ToyWindows, make_run


@pytest.fixture
def folder(tmp_path):
    return open_folder(tmp_path)


def write(folder, **changes):
    record = {
        "format": "raypipe-driver/3",
        "id": "x",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.time() - 9,
        "beat": time.time(),
        "spent": 100.0,
        "gpu_hours": 0.0,
        "ended": False,
    }
    folder.write(DRIVER_FILE, with_digest(record | changes))


def dead_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    return child.pid


def test_a_second_driver_gets_an_error_that_names_the_first(folder):
    with Lease(folder), pytest.raises(UserError, match=rf"another raypipe is driving this run \(process {os.getpid()}"):
        Lease(folder).__enter__()
    with Lease(folder):
        assert read_lease(folder).alive
    assert not read_lease(folder).alive


class Clock:
    """Stand-in for `time` in the lease: its monotonic clock moves while the lease sleeps, its wall clock is set."""

    def __init__(self, wall=0.0):
        self.now, self.wall = 1000.0, wall or time.time()
        self.meanwhile = lambda: None

    def monotonic(self):
        return self.now

    def time(self):
        return self.wall

    def sleep(self, seconds):
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch):
    """The lease's clock; nothing is known of earlier heartbeats."""
    made = Clock()
    monkeypatch.setattr("raypipe.storage.lease.time", made)
    monkeypatch.setattr("raypipe.storage.lease._SEEN", {})
    return made


OFFSETS = [0.0, -30.0, -7200.0, 7200.0, -1e9, 1e9]
"""Seconds by which the clock of another host is wrong."""


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_driver_on_another_host_whose_heartbeat_moves_holds_the_lease(folder, clock, offset):
    beat = clock.wall + offset
    write(folder, host="elsewhere", beat=beat)
    clock.meanwhile = lambda: write(folder, host="elsewhere", beat=beat + 5 * (clock.now // 5 - 200), spent=clock.now)
    waits = []
    with pytest.raises(UserError, match=r"another raypipe is driving this run \(process \d+ on elsewhere\)"):
        Lease(folder, waits.append).__enter__()
    assert clock.now <= 1006 and waits == [f"process {os.getpid()} on elsewhere"]


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_driver_on_another_host_whose_heartbeat_stands_still_is_taken_over_after_a_minute(folder, clock, offset):
    """A heartbeat in the future, of a host whose clock is wrong, held a run forever."""
    write(folder, host="elsewhere", beat=clock.wall + offset)
    with Lease(folder) as lease:
        assert EXPIRY_SECONDS <= clock.now - 1000.0 < EXPIRY_SECONDS + 5
        assert lease.spent == 100.0
    assert read_lease(folder).host == socket.gethostname()


def test_a_clock_that_is_set_back_is_a_heartbeat_too(folder, clock):
    write(folder, host="elsewhere", beat=clock.wall)
    clock.meanwhile = lambda: write(folder, host="elsewhere", beat=clock.wall - 7200)
    with pytest.raises(UserError, match="elsewhere"):
        Lease(folder).__enter__()


def test_a_driver_that_ends_while_it_is_watched_is_followed_at_once(folder, clock):
    write(folder, host="elsewhere")
    clock.meanwhile = lambda: write(folder, host="elsewhere", ended=True, spent=130.0)
    with Lease(folder) as lease:
        assert lease.spent == 130.0 and clock.now < 1002


def test_one_of_two_drivers_that_watch_a_dead_one_is_refused(folder, clock):
    write(folder, host="elsewhere")
    clock.meanwhile = lambda: write(folder, host="third", id="third")
    with pytest.raises(UserError, match="on third"):
        Lease(folder).__enter__()


def test_a_record_that_disappears_while_it_is_watched_holds_nothing(folder, clock):
    write(folder, host="elsewhere")
    clock.meanwhile = lambda: folder.remove(DRIVER_FILE)
    with Lease(folder) as lease:
        assert lease.spent == 100.0


def test_who_only_looks_goes_by_the_clock_at_first_and_then_by_the_heartbeat(folder, clock):
    for offset, alive in ((0.0, True), (-EXPIRY_SECONDS - 1, False), (7200.0, False)):
        write(folder, host="elsewhere", id=f"driver {offset}", beat=clock.wall + offset)
        assert read_lease(folder).alive is alive
        clock.now += 5
        assert read_lease(folder).alive is alive, "it has not moved"
        write(folder, host="elsewhere", id=f"driver {offset}", beat=clock.wall + offset + 5)
        assert read_lease(folder).alive
        clock.now += EXPIRY_SECONDS + 1
        assert not read_lease(folder).alive


@pytest.mark.parametrize("jump", [7200.0, -7200.0])
def test_a_clock_that_is_set_uses_up_no_time(folder, clock, jump):
    with Lease(folder) as lease:
        clock.now += 10.0
        clock.wall += jump
        assert lease.spent == 10.0
        assert Budget(lease, 60.0, None).used_up() == ""
        lease._beat()
        assert read_lease(folder).spent == 10.0
        clock.now += 51.0
        assert Budget(lease, 60.0, None).used_up() == "the time budget was used up"


def test_a_dead_driver_on_this_host_is_taken_over_at_once_and_its_time_counts(folder):
    write(folder, pid=dead_pid())
    with Lease(folder) as lease:
        assert 100 <= lease.spent < 200
    assert read_lease(folder).spent >= 100


def test_a_dead_driver_whose_process_id_is_used_again_is_taken_over(folder):
    write(folder, pid=os.getpid())  # a restarted container often reuses the process id
    assert not read_lease(folder).alive
    with Lease(folder):
        pass


def test_a_driver_that_was_taken_over_keeps_the_new_record(folder):
    with Lease(folder):
        write(folder, host="elsewhere", id="other")
    assert read_lease(folder).id == "other"


def test_a_driver_notices_that_another_has_taken_over_its_run(folder, monkeypatch):
    monkeypatch.setattr("raypipe.storage.lease.HEARTBEAT_SECONDS", 0.01)
    with Lease(folder) as lease:
        assert lease.lost is None
        for _ in range(3000):  # again, since a heartbeat that is being written may replace it
            write(folder, host="elsewhere", id="other")
            lease._thread.join(0.01)
            if not lease._thread.is_alive():
                break
        assert not lease._thread.is_alive()
        assert "another raypipe is driving this run" in str(lease.lost) and "elsewhere" in str(lease.lost)


def test_behind_a_uri_the_process_id_and_the_heartbeat_are_checked(tmp_path, clock):
    folder = open_folder(f"file://{tmp_path}")
    with Lease(folder), pytest.raises(UserError, match="another raypipe"):
        Lease(folder).__enter__()
    write(folder)
    with Lease(folder):
        pass
    write(folder, pid=1)
    clock.meanwhile = lambda: write(folder, pid=1, spent=101.0)
    with pytest.raises(UserError, match="process 1 on"):
        Lease(folder).__enter__()
    clock.meanwhile = lambda: None
    with Lease(folder):  # another process has its id now
        pass


def test_a_storage_that_fails_does_not_free_the_lease(folder):
    with Lease(folder):
        failing = FailingFolder(folder, 0, times=2, error=StorageError("has not answered"), calls=["read"])
        for attempt in (lambda: read_lease(failing), lambda: Lease(failing).__enter__()):
            with pytest.raises(StorageError):
                attempt()
        assert failing.count == 2


def test_a_missing_or_damaged_record_is_no_lease(folder):
    assert read_lease(folder) is None
    folder.write(DRIVER_FILE, b"{broken")
    assert read_lease(folder) is None


def test_a_record_of_another_version_is_not_taken_over(folder):
    write(folder, format="raypipe-driver/9")
    with pytest.raises(UserError, match=r"driver.json: format 'raypipe-driver/9', expected 'raypipe-driver/3'; use "):
        Lease(folder).__enter__()


def test_a_run_whose_driver_has_just_started_is_in_use(tmp_path):
    run = make_run(tmp_path / "run", ToyWindows())
    with pytest.raises(UserError, match="no sweep was started"):
        resume(run.where)
    with Lease(run.folder), pytest.raises(UserError, match="another raypipe is driving this run"):
        resume(run.where)
